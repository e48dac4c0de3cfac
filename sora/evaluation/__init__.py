"""The parts of `sora evaluate`: generating clips for prompts, extracting features, computing metrics; shared over ranks and resumable."""
