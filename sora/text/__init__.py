"""Captions -> packed token states: encoders, their cache, and the choice and dropping of captions."""
