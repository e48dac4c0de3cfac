"""Starting commands: in a row, and under Slurm."""
