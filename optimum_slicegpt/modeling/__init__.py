"""
Models and their families. `family`, `families`, `weights`, `configuration_sliced` and `modeling_sliced` travel with
checkpoints: they import torch, transformers and each other only.
"""
