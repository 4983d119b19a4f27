"""
How fast the energy of SmolLM2's residual stream falls off: along the axes of single sites, and along shared ones.

    python benchmarks/spectrum.py --calibration valid.txt

Tokens count as the default method counts them, each divided by its root mean square. Writes
`benchmarks/results/spectrum.json`, which `docs/generate_pictures.py` draws.
"""

import argparse

import torch
from common import dense_smollm2, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import load_batches
from optimum_slicegpt.dense_pass import site_moments
from optimum_slicegpt.rotation import principal_axes
from optimum_slicegpt.signals import first_signal


STEP = 8


def lost(moment, axes) -> list[float]:
    """Share of a site's energy that is lost at every width that is a multiple of STEP."""
    along = (axes * (moment @ axes)).sum(0) / moment.trace()
    return [round(share, 9) for share in along.flip(0).cumsum(0).flip(0)[::STEP].tolist()]


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, help="file with text")
    parser.add_argument("--nsamples", type=int, default=8, help="sequences of 1024 tokens")
    parser.add_argument("--model", default=None, help="folder of another checkpoint")
    args = parser.parse_args()

    folder = args.model or dense_smollm2()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sizes = {"nsamples": args.nsamples, "seqlen": 1024, "batch_size": 4, "seed": None}
    batches = load_batches(args.calibration, AutoTokenizer.from_pretrained(folder), **sizes).batches
    place = torch.device("cpu"), torch.float32
    signals = [first_signal(model, batch, *place, kept_on=place[0]) for batch in batches]
    moments = site_moments(model, batches, signals, *place, gradients=False).signal

    shared = principal_axes(sum(moment / moment.trace() for moment in moments))[1]
    last = len(moments) - 1
    sites = {site: lost(moments[site], principal_axes(moments[site])[1]) for site in (1, last // 2, last)}
    together = torch.tensor([lost(moment, shared) for moment in moments]).mean(0)
    write(
        "spectrum",
        {
            "model": "SmolLM2-135M-Instruct",
            "calibration": f"{args.nsamples} x 1024 tokens of {args.calibration.rpartition('/')[2]}",
            "hidden_size": model.config.hidden_size,
            "step": STEP,
            "lost_by_site": sites,
            "lost_shared": [round(share, 9) for share in together.tolist()],
        },
    )


if __name__ == "__main__":
    main()
