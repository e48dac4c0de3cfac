"""What packets of a file tell without being decoded: kind, structure, times, where decoding can begin."""
