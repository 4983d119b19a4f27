"""
Writes the tables of README.md and of pages in docs from `benchmarks/results/*.json`, between `<!-- table: NAME -->`
and `<!-- end -->`.

    python benchmarks/tables.py
"""

import json
import math
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


def quality() -> str:
    """Every method at one size, against what the authors' code makes of the model there."""
    found = results("quality")
    dense = next(run for run in found["runs"] if run["method"] == "dense" and run["series"] == "tied")
    runs = [run for run in found["runs"] if run["series"] == "untied" and run["sparsity"] == 0.25]
    paper = next(run for run in runs if run["method"] == "paper")

    def damage(run):
        return math.log(run["wikitext2"] / dense["wikitext2"])

    def time(run):
        return f"{run['slicing_s'] / paper['slicing_s']:.1f} ×" if run["threads"] == paper["threads"] else ""

    rows = [
        f"{found['model']} with a head of its own, at the {paper['parameters'] / 1e6:.1f} M parameters to which the "
        f"paper's method at sparsity 0.25 leads. Calibrated on {found['calibration']} of WikiText-2 (64 x 1024 where "
        "it says so), perplexity in bfloat16; tasks are instructions with answers, docs is Python's documentation. "
        "Damage is ln(perplexity / dense perplexity) on WikiText-2, as a share of the paper's. Time is relative to "
        f"the paper's method, both in bfloat16 on {found['machine']['cores']} CPU cores; none is given where a run "
        "had another number of threads.",
        "",
        "| method | width | neurons | WikiText-2 | damage | tasks | docs | time | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| dense | 576 | 1536 | {dense['wikitext2']:.2f} | | {dense['tasks']:.1f} | {dense['python-docs']:.1f} | | |",
    ]
    for run in runs:
        rows.append(
            f"| {run['method']} | {run['width']} | {run['neurons']} | {run['wikitext2']:.2f} "
            f"| {damage(run) / damage(paper):.2f} | {run['tasks']:.1f} | {run['python-docs']:.1f} "
            f"| {time(run)} | {run['peak_gib']:.2f} GiB |"
        )
    return "\n".join(rows)


def sizes() -> str:
    """The default method at every size."""
    found = results("quality")
    rows = [
        "| head | parameters | width | neurons | WikiText-2 | tasks | docs | paper's method there: WikiText-2, docs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for series in ("untied", "tied"):
        runs = [run for run in found["runs"] if run["series"] == series]
        dense = next(run for run in runs if run["method"] == "dense")
        for run in sorted(runs, key=lambda run: -run["parameters"]):
            if run["method"] not in ("dense", "shared + refit + neurons"):
                continue
            same = {"series": series, "method": "paper", "sparsity": run["sparsity"]}
            paper = next((other for other in runs if same.items() <= other.items()), None)
            theirs = f"{paper['wikitext2']:.2f}, {paper['python-docs']:.1f}" if paper else ""
            rows.append(
                f"| {series} | {run['parameters'] / 1e6:.1f} M ({run['parameters'] / dense['parameters'] - 1:+.1%}) "
                f"| {run.get('width', 576)} | {run.get('neurons', 1536)} | {run['wikitext2']:.2f} "
                f"| {run['tasks']:.1f} | {run['python-docs']:.1f} "
                f"| {theirs} |"
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


def streaming() -> str:
    found = results("streaming")
    rows = [
        "Llamas with random weights in bfloat16, calibrated on 8 x 512 tokens; peak is resident memory, of which the "
        "libraries are 0.5 GiB. What a method was estimated to take is in brackets.",
        "",
        "| parameters | on disk | method | `--max-memory` | peak memory | time, threads |",
        "|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        estimated = sum(run["plan"]["memory"].values()) / 2**30
        rows.append(
            f"| {run['parameters_dense'] / 1e9:.2f} B | {run['bytes_dense'] / 2**30:.2f} GiB | {run['method']} "
            f"| {run['max_memory']} | {run['peak_gib']:.2f} GiB ({estimated:.2f}) "
            f"| {run['slicing_s'] / 60:.0f} minutes ({run['plan']['seconds'] / 60:.0f}), {run['threads']} |"
        )
    return "\n".join(rows)


PAGES = ("README.md", "docs/ecosystem.md", "docs/streaming.md")
TABLES = {"quality": quality, "sizes": sizes, "slicing": slicing, "recovery": recovery, "quantization": quantization}
TABLES |= {"streaming": streaming}


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
