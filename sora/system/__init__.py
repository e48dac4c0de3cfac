"""What the machine and the operating system offer: files, processes, ranks, terminals. It knows nothing of video."""
