"""
Writes the tables of README.md and of docs/ from `benchmarks/results/*.json`, between `<!-- table: NAME -->` and
`<!-- end -->`.

    python benchmarks/tables.py
"""

import json
import math
import re
from pathlib import Path

from optimum_slicegpt import FAMILIES


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def slicing() -> str:
    found = results("slicing")
    authors, runs = found["authors"], found["runs"]
    dense = found["dense"]["parameters"]
    rows = [
        f"{found['model']}, calibrated on {found['calibration']}, perplexity on {found['test']} of WikiText-2, "
        "weights in bfloat16. Time is that of slicing over one forward of the dense layers over 32 such chunks in "
        "float32, and over the floor: one forward in the run's own dtype, the products for second moments and the "
        f"eigen-decompositions, in plain torch calls. {found['machine']['threads']} threads on "
        f"{found['machine']['processor']}. The authors' code makes {authors['parameters'] / 1e6:.1f} M parameters at "
        f"sparsity {authors['sparsity']:.2f}, perplexity {authors['perplexity']}, in "
        f"{authors['slicing_over_float32_forward']:.1f} × a forward; shared axes are made of so many, too."
        + (of_rounding(found["rounding"]) if found.get("rounding") else ""),
        "",
        "| run | tokens | dtype | width | parameters | against dense | perplexity | over a float32 forward "
        "| over the floor | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| dense | | | 576 | {dense / 1e6:.1f} M | | {found['dense']['perplexity']:.2f} | | | |",
    ]
    for name, run in runs.items():
        floor = f"{run['slicing_over_floor']:.2f} ×" if "slicing_over_floor" in run else ""
        rows.append(
            f"| {name.removesuffix(', bfloat16')} | {run['calibration_tokens']:,} | {run['dtype']} | {run['width']} "
            f"| {run['parameters'] / 1e6:.1f} M | {run['parameters'] / dense - 1:+.1%} | {run['perplexity']:.2f} "
            f"| {run['slicing_over_float32_forward']:.2f} × | {floor} | {run['peak_gib']:.2f} GiB |"
        )
    return "\n".join(rows)


def of_rounding(rounding: dict) -> str:
    return (
        f" On each of {len(rounding['float32'])} parts of that text, of 32 chunks, once in either dtype: bfloat16 "
        f"changes perplexity by {100 * rounding['change']:+.2f} % on average, with a standard error of "
        f"{100 * rounding['change_stderr']:.2f}."
    )


def asterisk(run: dict) -> str:
    """Marks runs that deleted neurons before the ridge was as it is; they noted no dtype."""
    return "" if "dtype" in run or run["method"] == "dense" or "neurons" not in run["method"] else " *"


def quality() -> str:
    """Every method at one size, against what the authors' code makes of the model there."""
    found = results("quality")
    dense = next(run for run in found["runs"] if run["method"] == "dense" and run["series"] == "tied")
    runs = [run for run in found["runs"] if run["series"] == "untied" and run["sparsity"] == 0.25]
    paper = next(run for run in runs if run["method"] == "paper")

    def damage(run):
        return math.log(run["wikitext2"] / dense["wikitext2"])

    def conditions(run):
        return run.get("commit"), run["threads"], run.get("dtype", "bfloat16")

    def time(run):
        comparable = conditions(run) == conditions(paper)
        return f"{run['slicing_s'] / paper['slicing_s']:.1f}\N{NO-BREAK SPACE}×" if comparable else ""

    rows = [
        f"{found['model']} with a head of its own, at the {paper['parameters'] / 1e6:.1f} M parameters to which the "
        f"paper's method at sparsity 0.25 leads. Calibrated on {found['calibration']} of WikiText-2, or on as many "
        "chunks as it says, perplexity in bfloat16; tasks are instructions with answers, docs is Python's "
        "documentation. Damage is ln(perplexity / dense perplexity) on WikiText-2, as a share of the paper's. "
        f"Time is relative to the paper's method, both in {paper.get('dtype', 'bfloat16')} on "
        f"{found['machine']['cores']} CPU cores; none is given where a run was of another commit or dtype, or had "
        "another number of threads. An asterisk: from before a stronger ridge, under which others make up for deleted "
        "neurons.",
        "",
        "| method | width | neurons | WikiText-2 | damage | tasks | docs | time | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| dense | 576 | 1536 | {dense['wikitext2']:.2f} | | {dense['tasks']:.1f} | {dense['python-docs']:.1f} | | |",
    ]
    for run in runs:
        rows.append(
            f"| {run['method']}{asterisk(run)} | {run['width']} | {run['neurons']} | {run['wikitext2']:.2f} "
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
                f"| {run.get('width', 576)} | {run.get('neurons', 1536)} | {run['wikitext2']:.2f}{asterisk(run)} "
                f"| {run['tasks']:.1f} | {run['python-docs']:.1f} "
                f"| {theirs} |"
            )
    smallest = max(found["authors"], key=lambda each: each["sparsity"])
    rows += [
        "",
        f"The authors' code gives every such model a head of its own: at sparsity {smallest['sparsity']} it leaves "
        f"{smallest['parameters'] / 1e6:.1f} M parameters, and a perplexity of {smallest['wikitext2']:.2f}.",
    ]
    return "\n".join(rows)


def recovery() -> str:
    """What a short recovery regains, alone and from the dense model."""
    found = results("recovery")
    runs = found["runs"]

    def damage(name):
        return math.log(runs[name]["wikitext2"] / runs["dense"]["wikitext2"])

    trained = runs["recovered"]
    rows = [
        f"{found['model']} with a head of its own, sliced to {runs['sliced']['parameters'] / 1e6:.1f} M parameters by "
        f"the default method. LoRA on {trained['sequences']} x {trained['settings']['seqlen']} tokens of "
        f"{found['train']} of WikiText-2, learning rate {trained['settings']['learning_rate']}; "
        f"perplexity on {found['test']}, on instructions with answers (tasks) and on "
        "Python's documentation (docs), none of which was trained on. Damage is ln(perplexity / dense perplexity) on "
        "WikiText-2, as a share of the sliced model's. Minutes on CPU cores.",
        "",
        "| | WikiText-2 | damage | tasks | docs | minutes | cores |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"dense": "dense", "sliced": "sliced", "recovered": "recovered"}
    names["distilled"] = "recovered, with the dense model as the teacher"
    names["distilled, teacher adapted"] = "the same, the teacher adapted to the text first"
    few = "recovered, few sequences"
    if few in runs:
        sequences, epochs = runs[few]["sequences"], runs[few]["settings"]["epochs"]
        names[few] = f"{sequences} of the sequences, {epochs} times each: recovered"
        names["distilled, teacher adapted, few sequences"] = "the same, with a teacher adapted to these first"
    for name, shown in names.items():
        if name not in runs:
            continue
        share = f"{damage(name) / damage('sliced'):.2f}" if name != "dense" else ""
        minutes = f"{runs[name]['minutes']:.0f} | {runs[name]['threads']}" if "steps" in runs[name] else " | "
        rows.append(
            f"| {shown} | {runs[name]['wikitext2']:.2f} | {share} | {runs[name]['tasks']:.1f} "
            f"| {runs[name]['python-docs']:.1f} | {minutes} |"
        )
    return "\n".join(rows)


def quantization() -> str:
    found = results("quantization")
    rows = [f"| {found['model']}, bfloat16 | saved, MB | perplexity |", "|---|---|---|"]
    rows += [f"| {name} | {run['saved_mb']:.1f} | {run['perplexity']:.2f} |" for name, run in found["runs"].items()]
    about = (
        f"Sparsity {found['sparsity']}, calibrated on {found['calibration']}, measured on {found['test']}, "
        f"torchao {found['torchao']} on a CPU."
    )
    return "\n".join([*rows, "", about])


def piqa() -> str:
    """Every checkpoint, and by how much it differs from the first."""
    found = results("piqa")

    def figure(run, metric):
        return f"{100 * run[metric]:.1f} ± {100 * run[metric + '_stderr']:.1f}"

    def difference(run, metric):
        mean, stderr = (100 * run[f"{metric}_difference{suffix}"] for suffix in ("", "_stderr"))
        return f"{mean:+.1f} ± {stderr:.1f}" if run is not found["runs"][0] else ""

    rows = [
        f"{found['task']}, {found['runs'][0]['questions']:,} questions, no examples shown, lm-eval "
        f"{found['lm_eval']}, weights in {found['dtype']}. Accuracy in %, with its standard error; differences are "
        "from the first row, and their standard errors paired, question by question.",
        "",
        "| model | parameters | acc | difference | acc_norm | difference |",
        "|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        cells = (cell(run, metric) for metric in ("acc", "acc_norm") for cell in (figure, difference))
        rows.append(f"| {run['name']} | {run['parameters'] / 1e6:.1f} M | {' | '.join(cells)} |")
    return "\n".join(rows)


def inference() -> str:
    """Throughput over that of the dense model, beside what FLOPs alone would make of it."""
    found = results("inference")
    settings = found["runs"][0]["settings"]
    rows = [
        f"Random weights, {found['runs'][0]['dtype']}, {found['machine']['threads']} threads on "
        f"{found['machine']['processor']}, prompts of {settings['seqlen']} tokens; medians of {settings['repeats']} "
        "repeats, models taking turns. FLOPs is the speed-up that products with matrices alone would give, attention "
        "scores left out; share is what of it is reached.",
        "",
        "| model | parameters | batch | prefill, tokens/s | over dense | FLOPs | share | decode, tokens/s "
        "| over dense |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        speedups = {(each["model"], each["batch_size"]): each for each in run["speedups"]}
        for each in run["speeds"]:
            cells = ["", "", "", f"{each['decode']['tokens_per_s']:,.1f}", ""]
            if speedup := speedups.get((each["model"], each["batch_size"])):
                faster, flops = speedup["prefill"]["throughput"]["median"], speedup["prefill"]["flops"]
                cells[:3] = f"{faster:.2f} ×", f"{flops:.2f} ×", f"{faster / flops:.2f}"
                cells[4] = f"{speedup['decode']['throughput']['median']:.2f} ×"
            rows.append(
                f"| {run['name']}, {each['model']} | {each['parameters'] / 1e6:.1f} M | {each['batch_size']} "
                f"| {each['prefill']['tokens_per_s']:,.0f} | {' | '.join(cells)} |"
            )
    return "\n".join(rows)


def streaming() -> str:
    """What slicing from disk to disk takes, and what its plan had said."""
    found = results("streaming")
    runs = sorted(found["runs"], key=lambda run: run["parameters_dense"])
    tokens, imported = runs[0]["calibration_tokens"], max(run["gib_when_imported"] for run in runs)
    rows = [
        f"Llamas with random weights in bfloat16 and a tied head, from disk to disk, calibrated on {tokens} tokens. "
        "Peak is of the whole process, by the kernel's count of resident memory, of which the libraries are "
        f"{imported:.2f} GiB once they are imported. The time that is planned is of computing alone.",
        "",
        "| method | parameters | checkpoint | sliced | `--max-memory` | peak memory | planned | time | of it reading "
        "| writing | planned | threads |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        memory = seconds = ""
        if plan := run.get("plan"):
            memory, seconds = f"{sum(plan['memory'].values()) / 2**30:.2f} GiB", f"{plan['seconds']:,.0f} s"
        took = run["seconds_by_phase"]
        rows.append(
            f"| {run['method']} | {run['parameters_dense'] / 1e6:,.0f} M | {run['bytes_dense'] / 2**30:.2f} GiB "
            f"| {run['bytes_sliced'] / 2**30:.2f} GiB | {run['max_memory']} | {run['peak_gib']:.2f} GiB | {memory} "
            f"| {run['slicing_s']:,.0f} s | {took['read']:,.0f} s | {took['write']:,.0f} s | {seconds} "
            f"| {run['threads']} |"
        )
    return "\n".join(rows)


def processes() -> str:
    """What several processes take, against one."""
    found = results("processes")
    rows = [
        f"{found['model']} in float32, {found['nsamples']} x {found['seqlen']} tokens, one thread a process, on "
        f"{found['machine']['cores']} cores of {found['machine']['processor']}. "
        "Difference is the largest of any weight, relative to the largest entry of that weight.",
        "",
        "| method | processes | slicing | of one process | difference | peak memory of the first |",
        "|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        ratio = difference = ""
        if "time_over_one_process" in run:
            ratio = f"{run['time_over_one_process']:.2f} ×"
            difference = f"{run['largest_relative_difference_of_weights']:.1g}"
        rows.append(
            f"| {run['method']} | {run['processes']} | {run['slicing_s']:.0f} s | {ratio} | {difference} "
            f"| {run['peak_gib_of_the_first']:.2f} GiB |"
        )
    return "\n".join(rows)


def costs() -> str:
    """What slicing large models is expected to take, from disk to disk."""
    found = results("scaling")
    machine, rates = found["machine"], found["H100_flops_per_s"]
    told = ", ".join(f"{rate / 1e12:.0f} in {dtype}" for dtype, rate in rates.items())
    errors = [run["predicted_over_measured"] for run in found["runs"]]
    rows = [
        f"Streamed in bfloat16, calibrated on {found['calibration']}, with `--max-memory` at "
        f"{found['max_memory'] / 2**30:.0f} GiB. Hours are of computing alone. On an H100: at {told} TFLOP/s, half of "
        f"its data sheet; not measured. On {machine['cores']} cores of {machine['processor']}: what `--plan` says "
        f"there, times {found['taken_over_planned']:.2f}, which was fitted to {len(errors)} runs; each of them, "
        f"predicted from the others, came out at {min(errors):.2f} to {max(errors):.2f} of what it took.",
        "",
        "| model | method | memory | result | beside it | read | hours, H100 | hours, CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found["costs"]:
        memory, gib = sum(each["memory"].values()), 2**30
        hours = (each["seconds"][name] / 3600 for name in ("H100", "this machine"))
        hours = (f"{count:,.0f}" if count >= 10 else f"{count:.2g}" for count in hours)
        rows.append(
            f"| {each['model']} | {each['method']} | {memory / gib:,.0f} GiB | {each['bytes_written'] / gib:,.0f} GiB "
            f"| {each['bytes_beside'] / gib:,.0f} GiB | {each['bytes_read'] / gib:,.0f} GiB | {' | '.join(hours)} |"
        )
    return "\n".join(rows)


def settings() -> str:
    """README.md's own table of settings, as a page in docs/ has it."""
    section = (ROOT / "README.md").read_text().partition("## Which settings")[2].partition("\n## ")[0]
    return re.search(r"^\|.*?(?=\n\n)", section, flags=re.M | re.S)[0].replace("](docs/", "](")


PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TABLES = {
    "costs": costs,
    "quality": quality,
    "sizes": sizes,
    "slicing": slicing,
    "recovery": recovery,
    "quantization": quantization,
    "piqa": piqa,
    "processes": processes,
    "inference": inference,
    "streaming": streaming,
    "settings": settings,
}


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
