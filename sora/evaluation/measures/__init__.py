"""What is measured of videos: distances, scores of single clips, losses, memorisation."""
