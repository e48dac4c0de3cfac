"""Files of pixels: read under guard, and written."""
