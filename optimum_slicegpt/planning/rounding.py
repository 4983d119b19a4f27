"""Sizes that kernels and quantizers like: multiples of a power of two."""

from collections.abc import Iterator


LARGEST_STEP = 256
"""Length of the longest blocks that quantizers have (llama.cpp's k-quants), and a multiple of all others."""
SMALLEST_SHARE = 16
"""A default step is at most one part in so many of the dense size, so that sizes can be chosen finely enough."""
SMALLEST_STEP = 8
"""GPUs compute multiples of 8 half-precision numbers faster. No smaller steps are tried while larger ones will do."""


BLOCKS = {
    "llama.cpp, Q4_0 to Q8_0": 32,
    "llama.cpp, k-quants": 256,
    "bitsandbytes, 4 bit": 64,
    "torchao, groups of 128": 128,
}
"""Length of the blocks of formats for quantized weights. Rows of matrices that are no multiple fall back, or fail."""


def unfilled_blocks(sizes: dict[str, tuple[int, int]]) -> dict[str, str]:
    """
    Finds the formats whose blocks a size no longer fills.

    Args:
        sizes (`dict[str, tuple[int, int]]`): names of sizes, each before and after slicing.

    Returns:
        `dict[str, str]`: for every such format, the sizes in words.

    Examples:
        >>> unfilled_blocks({"hidden size": (576, 544), "neurons": (1536, 1088)})["llama.cpp, k-quants"]
        'not in blocks of 256: neurons 1536 -> 1088'
    """
    found = {}
    for name, block in BLOCKS.items():
        lost = [f"{what} {old} -> {new}" for what, (old, new) in sizes.items() if old % block == 0 and new % block]
        if lost:
            found[name] = f"not in blocks of {block}: {', '.join(lost)}"
    return found


def default_step(size: int) -> int:
    """
    Returns the step of a size: the largest power of two that divides it, at most 1/16 of it and at most 256.

    Args:
        size (`int`): of the dense model.

    Examples:
        >>> default_step(576), default_step(1536), default_step(4096), default_step(14336)
        (32, 64, 256, 256)
    """
    step = LARGEST_STEP
    while size % step or step > max(1, size // SMALLEST_SHARE):
        step //= 2
    return step


def round_down(size: int, sparsity: float, step: int) -> int:
    """Computes the rest of a size, rounded down to a multiple of a step. With a sparsity of 0, it is the size."""
    left = int(round((1 - sparsity) * size, 6))  # In floating point, 0.1 of 40 is 3.9999999999999996.
    return left - left % step if sparsity else left


def halvings(number: int) -> Iterator[int]:
    """Yields a number, its half, and so on down to 1. Halves are rounded down."""
    while number:
        yield number
        number //= 2
