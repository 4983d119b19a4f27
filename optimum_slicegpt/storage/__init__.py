"""Where weights and activations are: memory, or files."""
