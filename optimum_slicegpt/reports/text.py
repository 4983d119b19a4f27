"""Figures and records as text, for consoles, cards and pages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig


if TYPE_CHECKING:
    from ..planning.inspection import Inspection


def one_line(text: str) -> str:
    """Returns a text that others may have written in one line, without characters that steer a console."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def plain_markdown(text: str) -> str:
    """
    Returns a text that others may have written so that Markdown shows it, and reads no headings, links or HTML in it.

    Examples:
        >>> print(plain_markdown("a|b\\n# <b>Free</b> [models](https://a.b)"))
        a\\|b \\# \\<b>Free\\</b> \\[models\\](https://a.b)
    """
    return re.sub(r"([\\`\[\]<#|])", r"\\\1", one_line(text))


def format_range(values: Sequence[float]) -> str:
    """Formats the smallest and the largest of some numbers, or the number that all of them equal."""
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))


def format_percent(share: float) -> str:
    return f"{share:.2%}"


def format_change(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}"


def format_rate(rate: float) -> str:
    """
    Formats a speed with two digits at least.

    Examples:
        >>> format_rate(0.347), format_rate(2.5), format_rate(1234.5)
        ('0.35', '2.5', '1,234')
    """
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"


def format_loss(loss: float | None, stderr: float | None = None) -> str:
    """Formats a difference of losses in nats, with its standard error if that is known."""
    error = "" if stderr is None else f" ± {stderr:.3f}"
    return "not finite" if loss is None else f"{loss:+.3f}{error}"


def loss_rows(texts: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lists what a model lost on each kind of text, as [`Check`] found it; the titles of the columns first."""
    rows = [("loss, nats per token", "tokens", "dense", "sliced", "more")]
    for kind, text in texts.items():
        losses = ["not finite" if text[key] is None else format_value(text[key]) for key in ("dense", "sliced")]
        rows.append((kind, f"{text['tokens']:,}", *losses, format_loss(text["loss"], text["stderr"])))
    return rows


def format_value(value: Any) -> str:
    """Formats a value of a record in one line: a number, a text, a list of either, or a mapping of such values."""
    if isinstance(value, dict):
        separator = "; " if any(isinstance(inner, dict) for inner in value.values()) else ", "
        return separator.join(f"{name} {format_value(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return one_line(", ".join(value)) if value and isinstance(value[0], str) else format_range(value)
    return f"{value:,}" if type(value) is int else one_line(str(value))


def flatten_record(record: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """
    Lists the names and values of a record as text; names of nested values follow those of their mappings.

    Examples:
        >>> flatten_record({"steps": 1200, "settings": {"lora_rank": 32, "seed": None}})
        [('steps', '1,200'), ('settings, lora rank', '32')]
    """
    rows = []
    for key, value in record.items():
        name = one_line(f"{prefix}{key}".replace("_", " "))
        if isinstance(value, dict):
            rows += flatten_record(value, f"{name}, ")
        elif value is not None:
            rows.append((name, format_value(value)))
    return rows


def inspection_rows(found: Inspection) -> list[tuple[str, ...]]:
    """
    Lists the dense model and each way of slicing it, a row for each.

    Args:
        found ([`Inspection`]): the columns on energy are left out where none was measured.

    Returns:
        `list[tuple[str, ...]]`: the titles of the columns first.
    """

    def format_neurons(neurons):
        return f"{neurons:,}" if neurons else "-"

    def format_cost(cost):
        return f"{cost.bytes / 1e6:,.1f} MB", f"{cost.flops_per_token / 1e9:,.3f}"

    def format_energy(kept):
        return (format_percent(sum(kept) / len(kept)), format_percent(min(kept))) if kept else ("-",) * measured

    measured = 2 * any(each.energy_kept for each in found.sliced)
    dense, width = found.dense, f"{found.hidden_size:,}"
    header = ("rotation", "embeddings", "asked for", "width", "neurons", "parameters", "change", "size")
    row = ("dense", "-", "-", width, format_neurons(found.neurons), f"{dense.parameters:,}", "-", *format_cost(dense))
    rows = [(*header, "GFLOPs per token", *("energy kept", "least")[:measured]), (*row, *["-"] * measured)]
    for each in found.sliced:
        key = "sparsity" if each.parameter_reduction is None else "parameter_reduction"
        row = (each.rotation, each.embeddings, f"{key.replace('_', ' ')} {getattr(each, key)}")
        if each.error:
            rows.append((*row, *["-"] * (6 + measured)))
            continue
        sliced = [width for width in each.widths if width < found.hidden_size] or each.widths
        row += (format_range(sliced), format_neurons(each.neurons or found.neurons))
        row += (f"{each.cost.parameters:,}", f"{each.change:+.1%}", *format_cost(each.cost))
        rows.append((*row, *format_energy(each.energy_kept)))
    return rows


def stream_sizes(config) -> tuple[int, list[int]]:
    """
    Returns the hidden size of the dense model, and the widths at all sites.

    Args:
        config (`PreTrainedConfig`): of a sliced model, with a record or of a sliced class.
    """
    record = config.slicegpt or {}
    if "widths" in record:
        return record["hidden_size"], record["widths"]
    return config.original_hidden_size, config.widths


def list_settings(config: PreTrainedConfig, record: dict[str, Any]) -> dict[str, str]:
    """
    Lists how a sliced model was made, for its card and its report.

    Args:
        config (`PreTrainedConfig`): of the sliced model.
        record (`dict[str, Any]`): its `config.slicegpt`, of which any part may be missing.

    Returns:
        `dict[str, str]`: names and values in words. An unknown value has no entry.
    """

    def describe(key: str, to_text: Callable[[Any], str | None] = str, source: dict[str, Any] = record) -> str | None:
        return None if source.get(key) is None else to_text(source[key])

    hidden_size, widths = stream_sizes(config)
    calibration, recovery = record.get("calibration") or {}, record.get("recovery") or {}
    training = recovery.get("settings") or {}
    rows = {
        "Sparsity asked for": describe("sparsity", "{:.1%} of the hidden dimensions".format),
        "Reduction asked for": describe("parameter_reduction", "{:.1%} of the parameters".format),
        "Axes": describe("rotation", {"per_block": "of every block's own", "shared": "shared by all blocks"}.get),
        "Readers and writers": describe("refit", {True: "fitted again", False: "rotated"}.get),
        "Each MLP trained for": describe("refine", lambda steps: f"{steps} steps" if steps else None),
        "Metric": describe("metric"),
        "Architecture": describe("architecture"),
        "Hidden size before": f"{hidden_size}",
        "Width of the residual stream": _format_widths(widths),
        "Neurons kept in each MLP": describe("intermediate_sizes", format_range, vars(config)) or describe("neurons"),
        "Widths rounded to multiples of": describe("round_to"),
        "Neurons rounded to multiples of": describe("round_neurons_to"),
        "Input of the head": describe("slice_head", lambda sliced: "sliced" if sliced else "whole"),
        "Embeddings": describe("embeddings"),
        "Orientation": describe("orientation"),
        "Energy kept at a site": describe(
            "energy_kept", lambda kept: f"{sum(kept) / len(kept):.1%} on average, {min(kept):.1%} at least"
        ),
        "Calibration data": describe("source", source=calibration),
        "Calibration tokens": describe("tokens", "{:,}".format, calibration),
        "Calibration dtype": describe("dtype"),
        "Seed": describe("seed"),
        "Fine-tuned": describe("full", {True: "all parameters", False: "with LoRA"}.get, training),
        "Rank of LoRA": None if training.get("full") else describe("lora_rank", source=training),
        "Fine-tuned on": describe("source", source=recovery),
        "Fine-tuned for": describe("steps", "{:,} steps".format, recovery),
        "Learning rate": describe("learning_rate", source=training),
        "Learned from": describe("distill", {True: "the dense model", False: "data alone"}.get, training),
    }
    return {name: value for name, value in rows.items() if value is not None}


def _format_widths(widths: list[int]) -> str:
    counts = Counter(widths)
    if len(counts) > 3:
        return f"{min(counts)} to {max(counts)}"
    return ", ".join(f"{width} ({count} site{'s' * (count > 1)})" for width, count in counts.items())
