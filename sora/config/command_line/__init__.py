"""Command lines: how a value is written, what follows, what help says, and sweeps over several values."""
