"""What only a machine with a GPU can say about the engine: whether it is right there, and how fast."""
