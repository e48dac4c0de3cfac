"""The page of `sora recaption`."""
