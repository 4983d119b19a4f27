"""
`refit=False`: weights are what the bases make of the dense ones, as in the paper (SliceGPT, section 3.3).
"""

from ..parts import Fit


class Rotate(Fit):
    """The dense weights in the bases of the sites: readers `W diag(gain) read`, writers `writeᵀ W`."""
