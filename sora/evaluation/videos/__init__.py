"""Which videos are scored: sets from anywhere, clips taken of them, and clips that are made first."""
