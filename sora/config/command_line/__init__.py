"""The syntax of command lines: values, suggested next commands, help pages, and sweeps over several values."""
