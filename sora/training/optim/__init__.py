"""Optimisers, schedules, averages of the weights, and norms of gradients."""
