"""Logs of a run while it trains."""
