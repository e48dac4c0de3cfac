"""Datasets whose index is a step number of a plan and whose items are the packs of that step."""
