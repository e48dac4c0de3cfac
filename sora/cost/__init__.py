"""Predicts the memory, time and money of a run before it starts."""
