"""Metrics of single clips, with or without a reference."""
