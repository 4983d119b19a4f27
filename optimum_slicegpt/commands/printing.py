"""Everything that the commands print."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import datasets
from transformers.utils import logging

from ..reports.text import format_change, format_loss, format_rate, format_value, inspection_rows, loss_rows


if TYPE_CHECKING:
    from argparse import Namespace

    from ..evaluation.benchmark import Benchmark
    from ..evaluation.speed import Spread
    from ..planning.inspection import Inspection
    from ..planning.machine import Room
    from ..slicing.estimate import RunEstimate


def set_verbosity(args: Namespace) -> None:
    """
    Sets what is told beside results, and keeps the progress bars of transformers, huggingface_hub and datasets out of
    files and pipes.

    Args:
        args (`Namespace`): of any command: `quiet` leaves errors, `verbose` adds information.
    """
    if args.quiet or not sys.stderr.isatty():
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
    if args.quiet or args.verbose:
        level = logging.ERROR if args.quiet else logging.INFO
        for library in ("transformers", "optimum_slicegpt"):
            logging.get_logger(library).setLevel(level)


def print_json(report: dict[str, Any]) -> None:
    # JSON has no NaN and no infinity, which Python writes nevertheless.
    print(json.dumps(json.loads(json.dumps(report), parse_constant=lambda name: None)))


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Prints columns as wide as their longest cell: the first flush left, figures flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    for label, *figures in rows:
        aligned = (f"{figure:>{width}}" for figure, width in zip(figures, others, strict=True))
        print("  ".join([f"{label:<{first}}", *aligned]))


def print_summary(summary: dict[str, Any]) -> None:
    """Prints what a run of `compress` made of a model, as [`compress.summarise`] returns it."""
    record = summary["slicegpt"]
    counts = record["parameters_before"], record["parameters_after"]
    sizes = summary["bytes_in_memory_before"], summary["bytes_on_disk_after"]
    rows = [
        ("", "before", "after", "change"),
        ("parameters", *(f"{count:,}" for count in counts), format_change(*counts)),
        ("size", *(f"{size / 1e6:,.1f} MB" for size in sizes), format_change(*sizes)),
    ]
    if "perplexity_on" in summary:
        figures = [summary[f"perplexity_{when}"]["perplexity"] for when in ("before", "after")]
        texts = (f"{figure:.2f}" for figure in figures)
        rows.append((f"perplexity on {summary['perplexity_on']}", *texts, format_change(*figures)))
    print_table(rows)
    print_check(record.get("check"))
    print("Size before is of the parameters in memory, size after of the weight files on disk.")
    share = counts[1] / counts[0] - 1
    verb, more = ("grew", "more") if share > 0 else ("shrank", "fewer")
    print(f"The model {verb}: {abs(share):.1%} {more} parameters.")
    print(", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in record["seconds"].items()))
    for name, sizes in summary["unfilled_blocks"].items():
        print(f"{name}: {sizes}")
    code = "no code of this package" if record["architecture"] == "stock" else "this package or trust_remote_code=True"
    print(f"It is a {summary['architecture']} and needs {code}.")
    print(f"Saved in {summary['output']}")


def print_sizes(summaries: list[dict[str, Any]]) -> None:
    """Prints a row for every size: parameters, and what the model lost on each kind of text."""
    first = summaries[0]
    kinds, dense = first["slicegpt"].get("check", {}).get("texts", {}), first["slicegpt"]["parameters_before"]
    mean, measured = len(kinds) > 1, "perplexity_on" in first
    rows = [("loss, nats per token", "parameters", "change", *kinds)]
    rows.append(("dense", f"{dense:,}", "", *[""] * len(kinds)))
    if mean:
        rows = [(*rows[0], "mean"), (*rows[1], "")]
    if measured:
        figure = f"{first['perplexity_before']['perplexity']:.2f}"
        rows = [(*rows[0], f"perplexity on {first['perplexity_on']}"), (*rows[1], figure)]
    for summary in summaries:
        after, check = summary["slicegpt"]["parameters_after"], summary["slicegpt"].get("check")
        row = [summary["output"], f"{after:,}", format_change(dense, after)]
        row += [format_loss(check["texts"][kind]["loss"], check["texts"][kind]["stderr"]) for kind in kinds]
        row += [format_loss(check["loss"])] if mean else []
        row += [f"{summary['perplexity_after']['perplexity']:.2f}"] if measured else []
        rows.append(tuple(row))
    print_table(rows)


def print_check(check: dict[str, Any] | None) -> None:
    """Prints what a model lost on each kind of text, and what it answers before and after, as [`Check`] found it."""
    if check is None:
        return
    rows = loss_rows(check["texts"])
    if len(check["texts"]) > 1:
        rows.append(("mean", "", "", "", format_loss(check["loss"], check["stderr"])))
    if check["texts"]:
        print_table(rows)
    if "sizes" in check:
        tried = ", ".join(f"{size} {format_loss(loss)}" for size, loss in check["sizes"].items())
        print(f"at most {check['max_loss']:.3f} nats; parameters and what they lose: {tried}")
    for prompt, answers in check["answers"].items():
        print(f"{prompt}\n  dense:  {answers['dense']}\n  sliced: {answers['sliced']}")


def print_estimate(estimate: RunEstimate, rooms: dict[str, Room], runs: int = 1) -> None:
    """
    Prints what a run will take, or each of several runs in a search for a size, and whether there is room for it.
    """
    gib = {name: f"{size / 2**30:.2f} GiB" for name, size in vars(estimate).items() if name.startswith("bytes_")}
    counts = estimate.parameters_before, estimate.parameters_after
    widths = " to ".join(f"{width:,}" for width in sorted({min(estimate.widths), max(estimate.widths)}))
    sizes = f"width {widths} of {estimate.hidden_size:,}"
    if estimate.all_neurons is not None:
        sizes += f", {estimate.neurons or estimate.all_neurons:,} of {estimate.all_neurons:,} neurons in each MLP"
    work = ", ".join(f"{count / 1e12:,.2f} TFLOP in {dtype}" for dtype, count in estimate.flops.items())
    passes = f"{len(estimate.passes)} ({', '.join(estimate.passes)})"
    disk = f"{gib['bytes_written']} for the result"
    if estimate.bytes_beside:
        disk += f", {gib['bytes_beside']} beside it until the end; {gib['bytes_per_step']} saved after each layer"
    time = "unknown, as the device is not here"
    if estimate.seconds is not None:
        time = f"{estimate.seconds / 60:,.1f} minutes of computing on this machine"
    needs = {place: _memory(room.parts) for place, room in rooms.items()} | {"disk": disk}
    rows = {
        "parameters": "{:,} before, {:,} after".format(*counts) + f", {format_change(*counts)}; {sizes}",
        "passes over the weights": f"{passes}, {gib['bytes_read']} read",
        **{f"{name}, estimated": f"{needs[name]}: {_verdict(room)}" for name, room in rooms.items()},
        "time, estimated": f"{time} ({work})",
        "operations": f"as many as {estimate.forwards:,.1f} forwards of the dense model over the text take",
    }
    if runs > 1:
        rows["runs"] = f"about {runs} such ones, until the size is found; the parameters are a guess"
    for name, value in rows.items():
        print(f"{name}: {value}")
    print(flush=True)


def _memory(parts: dict[str, int]) -> str:
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    return f"{sum(parts.values()) / 2**30:.2f} GiB at the peak ({listed})"


def _verdict(room: Room) -> str:
    if room.available is None:
        return "not compared"
    there = f"{room.available / 2**30:,.2f} GiB"
    return f"fits into {there}" if room.remedy is None else f"does not fit into {there}; give {room.remedy}"


def print_inspection(found: Inspection) -> None:
    """Prints the dense model and each way of slicing it."""
    neurons = f"{found.neurons:,} neurons in each MLP" if found.neurons else "experts"
    print(
        f"{found.model_type}: hidden size {found.hidden_size:,}, {neurons}; {found.dtype}. "
        "FLOPs: of products with matrices, attention scores left out."
    )
    print_table(inspection_rows(found))
    for error in dict.fromkeys(each.error for each in found.sliced if each.error):
        print(error)


def print_record(record: dict[str, Any]) -> None:
    """Prints the keys of a sliced configuration and how the model was made."""
    rows = {key: value for key, value in record.items() if key != "slicegpt"} | (record["slicegpt"] or {})
    for key, value in rows.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            lines = [f"  {part}: {format_value(each)}" for part, each in value.items() if each not in (None, "")]
            print(f"{name}:", *lines, sep="\n")
        elif value not in (None, ""):
            print(f"{name}: {format_value(value)}")


def print_perplexities(model: str, baseline: str | None, results: list[dict[str, Any]]) -> None:
    """Prints a row for every dataset and model; with a baseline, the difference of the two as well."""

    def make_row(dataset, name, found):
        figures = f"{found['ntokens']:,}", f"{found['perplexity']:.2f}", f"{found['nll']:.4f} ± {found['stderr']:.4f}"
        difference = found.get("difference")
        return dataset, name, *figures, f"{difference['nll']:+.4f} ± {difference['stderr']:.4f}" if difference else "-"

    rows = [("dataset", "model", "tokens", "perplexity", "nll", "difference")]
    for result in results:
        if baseline is not None:
            rows.append(make_row(result["dataset"], baseline, result["baseline"]))
        rows.append(make_row(result["dataset"], model, result))
    if baseline is None:
        print_table([row[:-1] for row in rows])
        return
    print_table(rows)
    print("Difference: of nll, which is the logarithm of the ratio of perplexities. Its standard error is paired.")


def print_benchmark(names: dict[str, str], found: Benchmark) -> None:
    """Prints speed and memory of each model, and the ratios of throughputs where there are two."""
    settings = found.settings
    threads = f", {found.threads} threads" if found.device == "cpu" else ""
    print(", ".join(f"{key}: {name}" for key, name in names.items()))
    print(
        f"Prompts of {settings.seqlen:,} tokens, {settings.new_tokens:,} new ones; {found.dtype} on {found.device}"
        f"{threads}. Median (first to third quartile) of {settings.repeats} repeats."
    )
    memory = "peak" if found.speeds[0].peak_gib is not None else "weights + cache"
    rows = [("batch", "model", "prefill, ms", "tokens/s", "decode, ms/step", "tokens/s", f"{memory}, GiB")]
    for each in found.speeds:
        gib = each.weights_gib + each.cache_gib if each.peak_gib is None else each.peak_gib
        phases = [
            cell
            for phase in (each.prefill, each.decode)
            for cell in (_format_spread(phase.latency_ms, 1), format_rate(phase.tokens_per_s))
        ]
        rows.append((str(each.batch_size), each.model, *phases, f"{gib:.3f}"))
    print_table(rows)
    if found.speedups:
        rows = [("batch", "throughput", "prefill", "by FLOPs alone", "decode", "by FLOPs alone")]
        for each in found.speedups:
            ratios = [
                cell
                for ratio in (each.prefill, each.decode)
                for cell in (f"{_format_spread(ratio.throughput, 2)} ×", f"{ratio.flops:.2f} ×")
            ]
            rows.append((str(each.batch_size), f"{each.model} over {each.baseline}", *ratios))
        print_table(rows)


def _format_spread(values: Spread, digits: int) -> str:
    return f"{values.median:,.{digits}f} ({values.q1:,.{digits}f} to {values.q3:,.{digits}f})"
