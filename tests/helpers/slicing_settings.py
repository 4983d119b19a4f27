"""Settings of the paper's method and of the default one, with data to calibrate on."""

from tiny import calibration, paper

from optimum_slicegpt import SliceGPTConfig


def config(**kwargs):
    return paper(**{"sparsity": 0.3, "dataset": calibration()} | kwargs)


def default(**kwargs):
    return SliceGPTConfig(**{"sparsity": 1 / 3, "dataset": calibration()} | kwargs)
