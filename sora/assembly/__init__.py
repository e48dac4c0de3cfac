"""From a configuration to objects: networks, data, plans and training, for every command alike."""
