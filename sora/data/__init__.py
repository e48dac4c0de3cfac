"""Shards, their index, decoding, the plan of every step, and loading by it."""
