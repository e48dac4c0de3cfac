"""Block kinds, attention patterns, conditioning and positions of the network at equal compute; `python -m experiments.dit_ablations`."""
