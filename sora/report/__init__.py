"""Self-contained pages that show what a run made: values in, one HTML file out; nothing is loaded from anywhere."""
