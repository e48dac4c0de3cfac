"""Clips that show the same: signatures, candidates by perceptual hashes, confirmation picture by picture, groups."""
