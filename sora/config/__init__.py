"""From YAML to values: composing a command's configuration, checking every key of it, and building the objects it names."""
