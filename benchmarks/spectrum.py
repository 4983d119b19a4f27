"""
Measures how fast the energy of SmolLM2's residual stream falls off, along axes of single sites and along shared axes.

    python benchmarks/spectrum.py --calibration valid.txt

Writes `benchmarks/results/spectrum.json`, which `docs/generate_pictures.py` draws.
"""

import argparse

import torch
from common import dense_smollm2, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import load_batches
from optimum_slicegpt.evaluation.spectrum import measure_spectrum


STEP = 8


def lost_energy(energy) -> list[float]:
    """Returns the share of the energy that is lost at every multiple of STEP."""
    return [round(share, 9) for share in energy.flip(0).cumsum(0).flip(0)[::STEP].tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, help="file with text")
    parser.add_argument("--nsamples", type=int, default=8, help="sequences of 1024 tokens")
    args = parser.parse_args()

    folder = dense_smollm2()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sizes = {"nsamples": args.nsamples, "seqlen": 1024, "batch_size": 4, "seed": None}
    batches = load_batches(args.calibration, AutoTokenizer.from_pretrained(folder), **sizes)
    energy = measure_spectrum(model, batches).energy
    last = len(energy["per_block"]) - 1
    write(
        "spectrum",
        {
            "model": "SmolLM2-135M-Instruct",
            "calibration": f"{args.nsamples} x 1024 tokens of {batches.source}",
            "hidden_size": model.config.hidden_size,
            "step": STEP,
            "lost_by_site": {site: lost_energy(energy["per_block"][site]) for site in (1, last // 2, last)},
            "lost_shared": lost_energy(energy["shared"].mean(0)),
        },
    )


if __name__ == "__main__":
    main()
