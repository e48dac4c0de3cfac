"""Detectors of shot changes, each a `CutDetector`: by differences of neighbouring frames, by a network, by both, by the clock."""
