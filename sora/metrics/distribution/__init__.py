"""Distances between sets of features, with intervals, noise floors and p values."""
