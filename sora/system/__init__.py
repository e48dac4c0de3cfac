"""The machine and the operating system: files, processes, ranks, terminals. It knows nothing of video."""
