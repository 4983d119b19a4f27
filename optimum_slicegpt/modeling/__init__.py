"""Sliced architectures. These files import torch, transformers and each other only: they travel with checkpoints."""
