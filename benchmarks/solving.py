"""
Measures how the time of fitting an MLP's writer, and of deleting three tenths of its neurons, grows with their number.

    python benchmarks/solving.py --neurons 1536 4864 8960 14336

Protocol: neurons read a random stream whose directions have falling energies; their writer is fitted to a goal that
the sliced stream determines but for noise. There are twice as many tokens as neurons, one eighth of them held out.
Each size runs in a process of its own. Seconds are of the processor, over all cores. Writes
`benchmarks/results/solving.json`.
"""

import argparse
import json
import time
from itertools import pairwise

import torch
from common import in_fresh_process, peak_gib, write
from torch.nn.functional import silu

from optimum_slicegpt.linalg.regression import LeastSquares


TOKENS_AT_ONCE = 1024


def regression(neurons: int) -> tuple[LeastSquares, torch.Tensor]:
    """Returns the regression of a writer with its sums, and the dense writer."""
    size = neurons // 4
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    gate, up = (randn(size, neurons) / size**0.5 for _ in range(2))
    down, falling = randn(neurons, size) / neurons**0.5, torch.arange(1, size + 1) ** -0.5
    fit = LeastSquares(neurons, size, torch.device("cpu"))
    held_out = torch.arange(TOKENS_AT_ONCE) * 8 // TOKENS_AT_ONCE == 7
    for _ in range(0, 2 * neurons, TOKENS_AT_ONCE):
        x = randn(TOKENS_AT_ONCE, size) * falling
        active = (silu(x @ gate) * (x @ up)).bfloat16()
        goal = active.float() @ (down + 0.1 * down.roll(1, 0)) + 0.01 * randn(TOKENS_AT_ONCE, size)
        fit.add(active, goal, held_out=held_out)
    fit.finish()
    return fit, down.double()


def measure(neurons: int) -> dict:
    seconds = [time.process_time()]
    fit, prior = regression(neurons)
    seconds.append(time.process_time())
    found = fit.solve(prior)
    seconds.append(time.process_time())
    fit.delete_inputs(slice(0, neurons), neurons * 3 // 10, found)
    seconds.append(time.process_time())
    sums, solve, delete = (after - before for before, after in pairwise(seconds))
    phases = {"sums_cpu_s": sums, "solve_cpu_s": solve, "delete_cpu_s": delete}
    return {"neurons": neurons} | phases | {"peak_gib": peak_gib()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, nargs="+", default=[1536, 4864, 8960, 14336])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    runs = []
    for neurons in args.neurons:
        runs.append(in_fresh_process(__file__, "--one", neurons))
        print(runs[-1], flush=True)
    print(write("solving", {"runs": runs}))


if __name__ == "__main__":
    main()
