"""
Writes the tables of `ecosystem.md` from `benchmarks/results/clients.json`, which `make clients` writes: between
`<!-- clients: KIND -->` and `<!-- end -->`. Run it as `python docs/generate_ecosystem.py`.
"""

import json
import re
from pathlib import Path


FILE = Path(__file__).with_name("ecosystem.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "clients.json"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def versions(row: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in row.get("versions", {}).items())


def cell(form: str, *rows: dict) -> str:
    """Formats the values of each row, and joins them by a slash; a model for which the client failed has none."""
    return " / ".join("failed" if "error" in row else form.format_map(row) for row in rows)


def inference(found: dict) -> str:
    """The programs that run a model, compared with transformers in float32."""
    rows = []
    for client, (sliced, dense) in by_client(found, "inference").items():
        both = [row for row in (sliced, dense) if row]
        same = cell("{greedy} of {greedy_of}", *both)
        rows.append((client, versions(sliced), same, cell("{logits:.2g}", *both), cell("{perplexity:.2f}", *both)))
    header = ("Program", "Versions", "Equal tokens", "Largest difference of logits", "Perplexity")
    models = [found["models"][name] for name in ("sliced", "dense") if name in found["models"]]
    ours = cell("{class}, {bytes:,} bytes, perplexity {perplexity:.2f}", *models)
    return f"{table(header, rows)}\n\nSliced / dense. The models: {ours}. {source(found, 'inference')}"


def use(found: dict) -> str:
    """The programs that train, quantize, convert or judge a model."""
    rows = []
    for client, (sliced, dense) in by_client(found, "use").items():
        rows.append((client, versions(sliced), checks(sliced), checks(dense) if dense else ""))
    return f"{table(('Program', 'Versions', 'Sliced', 'Dense'), rows)}\n\n{source(found, 'use')}"


def checks(row: dict) -> str:
    """Lists what worked, with the text or number that a check gave."""
    if "error" in row:
        return f"failed: {row['error'][-1]}"
    return "; ".join(name if value is True else f"{name}: {shown(value)}" for name, value in row["checks"].items())


def shown(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def by_client(found: dict, kind: str) -> dict[str, tuple[dict, dict | None]]:
    """Returns the rows of the sliced and of the dense model for each client, in the order of the file."""
    rows = {(row["client"], row["model"]): row for row in found["runs"] if row["kind"] == kind}
    return {client: (row, rows.get((client, "dense"))) for (client, model), row in rows.items() if model == "sliced"}


def source(found: dict, kind: str) -> str:
    """Says which code was measured, and where."""
    commits = sorted({f"`{row['commit'][:7]}`" for row in found["runs"] if row["kind"] == kind})
    machine = found["machine"]
    commits = "commit unknown" if found["uncommitted_changes"] else f"commit {', '.join(commits)}"
    return f"Measured with {commits}, {machine['cores']} cores of {machine['processor']}."


def generate() -> dict[Path, str]:
    """Returns the text of `ecosystem.md`."""
    found, text = json.loads(RESULTS.read_text(encoding="utf-8")), FILE.read_text(encoding="utf-8")
    for make in (inference, use):
        pattern = rf"(<!-- clients: {make.__name__} -->\n).*?(<!-- end -->)"
        content = make(found)
        text = re.sub(pattern, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text, flags=re.S)
    return {FILE: text}


if __name__ == "__main__":
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")
