"""Self-contained HTML pages that show what a run made. A page is one file and loads nothing."""
