"""From others' files to a dataset, and checks of one."""
