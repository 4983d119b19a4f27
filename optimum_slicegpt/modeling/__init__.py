"""
Models and their families. `family`, `families` and its rows, `weights`, `heads`, `configuration_sliced`,
`layer_sliced` and `modeling_sliced` travel with checkpoints: they import torch, transformers and each other only.
"""
