"""Builds objects from a configuration, in the same way for every command: networks, data, plans and training."""
