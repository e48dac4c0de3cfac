"""Decoding: the backends of the `VideoReader` protocol (PyAV, decord, torchcodec), and the child process that runs one under guard."""
