"""Engines: what maps a function over units of work, in one process, several, or on several machines."""
