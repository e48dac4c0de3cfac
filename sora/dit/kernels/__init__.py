"""Parts of blocks with a backward pass of their own."""
