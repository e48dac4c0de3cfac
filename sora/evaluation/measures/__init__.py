"""Metrics of videos: distances, scores of single clips, losses, memorisation."""
