"""What a run asks of a cluster: how it is submitted, and what it will cost."""
