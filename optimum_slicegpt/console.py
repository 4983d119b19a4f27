"""How results look on a console."""

import json
import sys
from typing import Any

from transformers.utils import logging

from .inspection import Inspection
from .run_plan import RunPlan


def progress_on_terminals_only() -> None:
    """Keeps progress bars of other libraries out of files and pipes. Ours are quiet there already."""
    import datasets  # heavy, and cards and reports need this module too

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # and that of huggingface_hub
        datasets.disable_progress_bars()


def print_json(report: dict[str, Any]) -> None:
    # JSON has no NaN and no infinity, which Python writes nevertheless.
    print(json.dumps(json.loads(json.dumps(report), parse_constant=lambda name: None)))


def print_report(report: dict[str, Any]) -> None:
    record = report["slicegpt"]
    counts = record["parameters_before"], record["parameters_after"]
    sizes = report["bytes_in_memory_before"], report["bytes_on_disk_after"]
    rows = [
        ("", "before", "after", "change"),
        ("parameters", *(f"{count:,}" for count in counts), change(*counts)),
        ("size", *(f"{size / 1e6:,.1f} MB" for size in sizes), change(*sizes)),
    ]
    if "perplexity_on" in report:
        figures = [report[f"perplexity_{when}"]["perplexity"] for when in ("before", "after")]
        rows.append(
            (f"perplexity on {report['perplexity_on']}", *(f"{figure:.2f}" for figure in figures), change(*figures))
        )
    print_table(rows)
    print("Size before is of the parameters in memory, size after of the weight files on disk.")
    share = counts[1] / counts[0] - 1
    verb, more = ("grew", "more") if share > 0 else ("shrank", "fewer")
    print(f"The model {verb}: {abs(share):.1%} {more} parameters.")
    print(", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in record["seconds"].items()))
    print(report["export_obstacle"] or "It fits a stock class: optimum-cli slicegpt export makes it one.")
    print(f"Saved in {report['output']}")


def print_plan(plan: RunPlan) -> None:
    gib = {name: f"{size / 2**30:.2f} GiB" for name, size in vars(plan).items() if name.startswith("bytes_")}
    peak = sum(plan.memory.values()) / 2**30
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in plan.memory.items())
    work = ", ".join(f"{count / 1e12:,.2f} TFLOP in {dtype}" for dtype, count in plan.flops.items())
    rows = {
        "parameters": f"{plan.parameters_before:,} before, {plan.parameters_after:,} after",
        "passes over the weights": f"{len(plan.passes)} ({', '.join(plan.passes)}), {gib['bytes_read']} read",
        "disk": f"{gib['bytes_written']} for the result",
        "memory, estimated": f"{peak:.2f} GiB at the peak ({parts})",
        "time, estimated": f"{plan.seconds / 60:,.1f} minutes of computing on this machine ({work})",
    }
    if plan.bytes_beside:
        rows["disk"] += (
            f", {gib['bytes_beside']} beside it until the end; {gib['bytes_per_step']} saved after each layer"
        )
    for name, value in rows.items():
        print(f"{name}: {value}")
    print(flush=True)


def print_inspection(found: Inspection) -> None:
    neurons = f"{found.inner:,} neurons in each MLP" if found.inner else "experts"
    print(
        f"{found.model_type}: hidden size {found.hidden_size:,}, {neurons}; {found.dtype}. "
        "FLOPs: of products with matrices, attention scores left out."
    )
    print_table(inspection_rows(found))
    for error in dict.fromkeys(each.error for each in found.sliced if each.error):
        print(error)


def inspection_rows(found: Inspection) -> list[tuple[str, ...]]:
    """The dense model and what it can become, a row each. Energy has columns where it was measured."""

    def count(neurons):
        return f"{neurons:,}" if neurons else "-"

    def figures(cost):
        return f"{cost.bytes / 1e6:,.1f} MB", f"{cost.flops_per_token / 1e9:,.3f}"

    def energy(kept):
        return (percent(sum(kept) / len(kept)), percent(min(kept))) if kept else ()

    measured = 2 * any(each.energy_kept for each in found.sliced)
    dense, width = found.dense, f"{found.hidden_size:,}"
    header = ("rotation", "embeddings", "asked for", "width", "neurons", "parameters", "change", "size")
    row = ("dense", "-", "-", width, count(found.inner), f"{dense.parameters:,}", "-", *figures(dense))
    rows = [(*header, "GFLOPs per token", *("energy kept", "least")[:measured]), (*row, *["-"] * measured)]
    for each in found.sliced:
        key = "sparsity" if each.parameter_reduction is None else "parameter_reduction"
        row = (each.rotation, each.embeddings, f"{key.replace('_', ' ')} {getattr(each, key)}")
        if each.error:
            rows.append((*row, *["-"] * (6 + measured)))
            continue
        sliced = [width for width in each.widths if width < found.hidden_size] or each.widths
        row += (span(sliced), count(each.inner or found.inner), f"{each.cost.parameters:,}", f"{each.change:+.1%}")
        rows.append((*row, *figures(each.cost), *energy(each.energy_kept)))
    return rows


def print_record(record: dict[str, Any]) -> None:
    """What a sliced checkpoint says of itself, and of how it was made."""
    rows = {key: value for key, value in record.items() if key != "slicegpt"} | (record["slicegpt"] or {})
    for key, value in rows.items():
        if value not in (None, ""):
            print(f"{key.replace('_', ' ')}: {said(value)}")


def said(value: Any) -> str:
    """What a record holds, in a line."""
    if isinstance(value, dict):
        apart = "; " if any(isinstance(held, dict) for held in value.values()) else ", "
        return apart.join(f"{name} {said(held)}" for name, held in value.items() if held is not None)
    if isinstance(value, list):
        return ", ".join(value) if value and isinstance(value[0], str) else span(value)
    return f"{value:,}" if type(value) is int else str(value)


def span(values: list[float]) -> str:
    """From the smallest to the largest, or the one that all are."""
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))


def percent(share: float) -> str:
    return f"{share:.2%}"


def change(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}"


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as needed: the first flush left, figures flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    for label, *figures in rows:
        aligned = (f"{figure:>{width}}" for figure, width in zip(figures, others, strict=True))
        print("  ".join([f"{label:<{first}}", *aligned]))
