"""Tar shards, and the local or remote stores that hold them."""
