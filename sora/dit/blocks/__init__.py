"""Alternatives to `sora.dit.Block`, for the key dit.block."""
