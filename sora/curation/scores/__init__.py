"""Scores of clips: cheap ones, all in one pass over the frames of a video, and those of models."""
