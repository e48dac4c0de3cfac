"""From YAML to objects: composes a command's configuration, checks every key, and builds the objects that it names."""
