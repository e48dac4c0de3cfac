"""What `sora evaluate` is made of: generating for prompts, extracting features, measuring clips, all shared over ranks and resumable."""
