"""Starts commands: one after another, and under Slurm."""
