"""Distances between sets of features, and what they are worth."""
