"""The metadata of a dataset's clips: rows, columns, captions and latents, readable without the clips themselves."""
