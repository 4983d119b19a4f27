"""What makes tests quick without making them test less."""

import gc
from contextlib import contextmanager

from optimum_slicegpt.slicing import estimate


def measure_speed_briefly():
    """Lets estimates of a run measure this machine by small products: how fast it is matters to no test."""
    estimate.PROBE = 64


@contextmanager
def quick_garbage_collection():
    """
    Leaves all objects that exist out of garbage collection.

    `Trainer` collects garbage each time it begins, and most of the second that this takes is spent on what imports
    have made.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
