"""Facts of a file from its packets without decoding: kind, structure, times, and where decoding can begin."""
