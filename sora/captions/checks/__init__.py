"""Checks of captions, each of which gives flags and removes nothing."""
