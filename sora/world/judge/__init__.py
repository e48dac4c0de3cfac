"""What is seen in a clip of the built-in world, and how it is judged."""
