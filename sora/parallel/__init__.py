"""Training one model on several ranks: the device mesh, and what each of its axes does."""
