"""Makes datasets from others' files, and checks datasets."""
