"""Signals, hangs and ranks that die."""
