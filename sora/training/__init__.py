"""Lightning's view of the framework: runs, checkpoints, modules, callbacks, optimisers. No mathematics."""
