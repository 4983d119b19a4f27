"""Makes the tables about quality: what models lose on kinds of text, on PIQA, and in what they answer."""

import math
import statistics
from collections.abc import Callable

from common import RESULTS, is_dense, results
from formatting import PARAMETERS, PEAK, add_source, escape


SMALL = "SmolLM2-135M-Instruct"
"""The model whose rows README.md and the comparison of methods have."""
SIZE = {"size on disk": lambda row: f"{row['bytes_on_disk'] / 1e6:,.0f} MB"}
SHAPE = {"width": "{width}", "neurons": "{neurons}"}
LOSS = {"mean": "{mean:.3f} ± {mean_stderr:.3f}", "worst": "{worst:.3f}"}
"""What a model loses on kinds of text against the dense one, in nats."""
KINDS = {"wikitext2": "WikiText-2", "tasks": "instructions", "python-docs": "Python docs", "code": "code"}
TIME = {"slicing": "{slicing_s:,.0f} s"}
PIQA = {
    "PIQA, %": lambda row: format_points(row["piqa"], "acc"),
    "difference": lambda row: format_points(row["piqa"], "acc_difference", "+"),
}


def quality_rows(**wanted) -> tuple[dict, list[dict]]:
    """Reads results on kinds of text, and returns them with the dense rows and those that have the given values."""
    found = results("quality")
    rows = found["runs"] if "protocol" in found else []
    if all(map(is_dense, rows)):
        return found, []
    model = wanted.get("model")
    rows = [row for row in rows if (is_dense(row) and model in (None, row["model"])) or wanted.items() <= row.items()]
    return found, sorted(rows, key=lambda row: not is_dense(row))


def is_given(row: dict) -> bool:
    """Tells rows of models that were given, dense or made of a sliced one, from those of models that were sliced."""
    return row["nsamples"] is None


def format_excess(row: dict, kind: str) -> str:
    """Formats the excess of one kind of text and its error, with an asterisk if the model has seen the kind."""
    return f"{row['excess'][kind]:.3f} ± {row['stderr'][kind]:.3f}" + " \\*" * (kind in row["seen"])


def format_perplexity(row: dict, kind: str) -> str:
    return f"{math.exp(statistics.mean(row['nll'][kind])):.1f}" + " \\*" * (kind in row.get("seen", ()))


def by_kind(form: Callable[[dict, str], str]) -> dict:
    """Returns a column for every kind of text."""
    return {title: lambda row, kind=kind: form(row, kind) for kind, title in KINDS.items()}


def losses(rows: list[dict]) -> dict:
    """Returns the columns of the mean and the worst loss; that of all kinds where a model has seen some of them."""
    of_all = {"mean of all": "{mean_of_all:.3f}"} if any(row.get("seen") for row in rows) else {}
    return LOSS | of_all


def name_of(row: dict) -> str:
    """Names a row by how its model was made."""
    if is_dense(row):
        return row["model"]
    name = "default settings" if row["method"] == "default" else row["method"]
    name += f", {row['label']}" if "label" in row else ""
    return name + (f", {row['reduction']:.0%} smaller" if row["reduction"] else "")


def describe_kinds(rows: list[dict]) -> list[str]:
    """Says what rows were calibrated and measured on."""
    found = [row["calibrated_on"] for row in rows if row.get("calibrated_on")]
    texts = dict.fromkeys(f"{each['tokens']:,} tokens of {each['source']}" for each in found)
    facts = [f"calibrated on {' or '.join(texts)}"] if len(texts) == 1 else []
    chunks = sorted({row["chunks"] for row in rows})
    facts += [f"measured on {' or '.join(map(str, chunks))} chunks of {rows[0]['length']} tokens of each kind"]
    facts[0] = facts[0][0].upper() + facts[0][1:]
    if any(row.get("seen") for row in rows):
        facts.append("\\* seen in calibration or training, and left out of mean and worst")
    return facts


def readme() -> str | None:
    """The model that people download, what the default makes of it, with recovery, and the published method."""
    found, rows = quality_rows(model=SMALL)
    rows = [row for row in rows if is_given(row) or (row["method"] in ("default", "paper") and row["nsamples"] == 32)]
    columns = {"model": name_of} | PARAMETERS | SIZE | LOSS | by_kind(format_perplexity) | PIQA
    columns["tokens per second"] = "{tokens_per_s:.1f}"
    return rows and add_source(found, columns, rows, *describe_kinds(rows), "kinds are perplexities")


def quality() -> str | None:
    """Every method at one size, and the default of earlier commits."""
    found, rows = quality_rows(model=SMALL, nsamples=32, reduction=0.2)
    rows += [row for row in found.get("earlier", ()) if rows and row["model"] == SMALL]
    columns = {"method": lambda row: ", ".join(filter(None, (row["method"], row.get("label")))), **SHAPE}
    columns |= losses(rows) | by_kind(format_excess) | TIME | PEAK
    return rows and add_source(found, columns, rows, *describe_kinds(rows))


def sizes() -> str | None:
    """The default method at every size and on every model, and what was made of its results."""
    found, rows = quality_rows()
    rows = [row for row in rows if is_given(row) or row["method"] == "default"]
    rows.sort(key=lambda row: (row["model"] != SMALL, row["model"]))
    dense = {row["model"]: row["parameters"] for row in rows if is_dense(row)}
    columns = {"model": name_of} | PARAMETERS
    columns["change"] = lambda row: f"{row['parameters'] / dense[row['model']] - 1:+.1%}" * (not is_dense(row))
    columns |= {"calibrated on": "{calibrated_on[tokens]:,}", "recovered on": "{recovery[tokens]:,}", **SHAPE}
    columns |= losses(rows) | by_kind(format_excess) | TIME
    columns |= {"writing over dense": "{over_dense:.2f} ×", "prompts over dense": "{prefill_over_dense:.2f} ×"}
    return rows and add_source(found, columns, rows, *describe_kinds(rows))


def recovery() -> str | None:
    """What recoveries of one sliced model regain."""
    found = results("recovery")
    if "chunks" not in found:
        return None
    rows = [{"chunks": found["chunks"], "length": found["length"]} | run for run in found["runs"]]
    columns = {"model": "{name}", "trained on": "{trained_tokens:,}", **losses(rows), **by_kind(format_excess)}
    columns |= {"training": "{seconds:,.0f} s", "tokens per second": "{tokens_per_s:,.0f}"}
    return add_source(found, columns, rows, *describe_kinds(rows))


def piqa() -> str | None:
    """PIQA of every model that was asked, and by how much it differs from the dense one."""
    found, rows = quality_rows()
    rows = [row for row in rows if "piqa" in row]
    columns = {"model": name_of} | PARAMETERS
    for key in ("acc", "acc_norm"):
        columns[f"{key}, %"] = lambda row, key=key: format_points(row["piqa"], key)
        columns[f"difference of {key}"] = lambda row, key=key: format_points(row["piqa"], f"{key}_difference", "+")
    facts = [f"{rows[0]['piqa']['questions']:,} questions", f"lm-eval {rows[0]['piqa']['lm_eval']}"] if rows else []
    return rows and add_source(found, columns, rows, *facts)


def format_points(found: dict, key: str, sign: str = "") -> str:
    """Formats a share in percent, with its standard error."""
    return f"{100 * found[key]:{sign}.1f} ± {100 * found[f'{key}_stderr']:.1f}"


def prompts() -> str | None:
    """The answers of every model to the same prompts, side by side."""
    found = results("prompts") if (RESULTS / "prompts.json").exists() else {"runs": []}
    models = {run["model"]: [] for run in found["runs"]}
    for run in found["runs"]:
        models[run["model"]].append(run)
    parts = []
    for model, runs in models.items():
        rows = [
            {"kind": each["kind"], "prompt": each["prompt"]} | {run["name"]: run["answers"][i] for run in runs}
            for i, each in enumerate(found["prompts"])
        ]
        columns = {"": "{kind}", "prompt": lambda row: escape(row["prompt"])}
        columns |= {run["name"]: lambda row, name=run["name"]: escape(row[name]) for run in runs}
        facts = (f"{model}, greedy", f"at most {found['new_tokens']} tokens", found["dtype"])
        parts.append(add_source(found, columns, rows, *facts))
    return "\n\n".join(parts)
