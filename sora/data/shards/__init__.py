"""Tar shards, and where their bytes lie."""
