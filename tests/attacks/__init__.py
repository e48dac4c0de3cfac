"""Hostile and unlucky folders, files and words, through every door: what a command does with them is one line, in time and in memory."""
