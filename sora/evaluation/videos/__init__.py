"""The videos to score: sets from any source, clips taken from them, and clips that are generated first."""
