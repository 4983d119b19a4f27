"""Memory between the steps of a run."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from optimum_slicegpt.storage.base import release_freed_memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc, which keeps it"
)
def test_what_was_freed_before_something_in_use_goes_back_to_the_system():
    freed = [torch.ones(2**14) for _ in range(1000)]  # 64 MB, in blocks that are too small for mappings of their own
    in_use = torch.ones(2**14)
    held = resident_bytes()
    freed.clear()
    assert held - resident_bytes() < 16e6
    release_freed_memory()
    assert held - resident_bytes() > 48e6
    assert in_use.sum() == 2**14
