"""
Writes the tables of README.md and docs/ecosystem.md from `benchmarks/results/*.json`, between `<!-- table: NAME -->`
and `<!-- end -->`.

    python benchmarks/tables.py
"""

import json
import re
from pathlib import Path

from optimum_slicegpt import FAMILIES


ROOT = Path(__file__).resolve().parent.parent


def results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def slicing() -> str:
    found = results("slicing")
    dense = found["runs"][0]["parameters_dense"]
    rows = [
        f"{found['model']}, {found['calibration']}, perplexity on {found['test']} of WikiText-2, weights in bfloat16. "
        "Time is that of slicing over one forward of the dense model's layers on the same tokens, in "
        f"{found['dtype']} on {found['machine']['cores']} CPU cores.",
        "",
        "| sparsity | width | parameters | against dense | perplexity | slicing time | peak memory |",
        "|---|---|---|---|---|---|---|",
        f"| dense | 576 | {dense / 1e6:.1f} M | | {found['dense_perplexity']:.2f} | | |",
    ]
    for run in found["runs"]:
        rows.append(
            f"| {run['sparsity']:.2f} | {run['width']} | {run['parameters'] / 1e6:.1f} M "
            f"| {run['parameters'] / dense - 1:+.1%} | {run['perplexity']:.2f} "
            f"| {run['slicing_over_forward']:.2f} × | {run['peak_gib']:.2f} GiB |"
        )
    return "\n".join(rows)


def recovery() -> str:
    found = results("recovery_lora")
    return (
        f"| {found['model']}, sparsity {found['sparsity']} | perplexity on WikiText-2 test |\n|---|---|\n"
        f"| dense | {found['dense_perplexity']:.2f} |\n"
        f"| sliced | {found['perplexity_before']:.2f} |\n"
        f"| recovered, {found['nsamples']} sequences of {found['seqlen']}, {found['minutes']:.0f} minutes "
        f"on {found['machine']['cores']} CPU cores | {found['perplexity_after']:.2f} |"
    )


def quantization() -> str:
    found = results("quantization")
    rows = [f"| {found['model']}, bfloat16 | saved, MB | perplexity |", "|---|---|---|"]
    rows += [f"| {name} | {run['saved_mb']:.1f} | {run['perplexity']:.2f} |" for name, run in found["runs"].items()]
    about = (
        f"Sparsity {found['sparsity']}, calibrated on {found['calibration']}, measured on {found['test']}, "
        f"torchao {found['torchao']} on a CPU."
    )
    return "\n".join([*rows, "", about])


PAGES = ("README.md", "docs/ecosystem.md")
TABLES = {"slicing": slicing, "recovery": recovery, "quantization": quantization}


def filled(text: str) -> str:
    """A page with every table as the results have it."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text, flags=re.S)
    families = ", ".join(FAMILIES)
    return re.sub(r"(<!-- families -->).*?(<!-- end -->)", lambda match: f"{match[1]}{families}{match[2]}", text)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))
