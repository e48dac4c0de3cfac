"""What a run asks of a cluster before it starts: memory, time and money."""
