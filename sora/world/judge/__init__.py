"""Measures clips of the built-in world from their pixels, and judges them against prompts."""
