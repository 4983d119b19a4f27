"""Mathematics on tensors, tensors in and tensors out. These files import torch and each other only."""
