"""The blocks of the network, as siblings."""
