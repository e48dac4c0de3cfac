"""What is known of a dataset's clips without reading them: rows, columns, captions beside them, and latents."""
