"""Captioners: servers, templates, and a stub that stands in for a server."""
