"""Several ranks that train one model: the mesh, and what each axis of it does."""
