"""Decoding: one protocol, `VideoReader`, its backends (PyAV, decord, torchcodec), and the child process that runs them under guard."""
