"""The model card of a sliced model."""

import os
import re
from collections import Counter
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, httpx, validate_repo_id
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_matplotlib_available

from .console import span


TAGS = ("slicegpt", "optimum-slicegpt", "compressed", "pruning", "arxiv:2401.15024")
OURS = (
    "<!-- Written by optimum-slicegpt, and rewritten by push_to_hub. Remove this line to keep a card of your own. -->"
)
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
PICTURE = "slicegpt.png"
PIPELINES = {"CausalLM": "text-generation", "SequenceClassification": "text-classification"}


def model_card(
    model: PreTrainedModel,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    picture: str | None = None,
    token: bool | str | None = None,
) -> ModelCard:
    """
    The model card of a sliced model, from what `config.slicegpt` says. A fact that is not known is not mentioned.

    Args:
        model (`PreTrainedModel`): a sliced model.
        repo_id (`str`, *optional*): where it is published, for the title and the code to load it.
        license (`str`, *optional*):
            Its licence. By default that of the base model's card: in its folder, on the Hub or in the Hub's cache. No
            licence is named if none of them can be reached; the Hub is asked once and given 5 seconds.
        picture (`str`, *optional*): name of a file beside the card, see [`save_picture`].
        token (`bool` or `str`, *optional*): to ask the Hub with.

    Returns:
        `huggingface_hub.ModelCard`: save it as README.md. Local paths are not in it.

    Raises:
        ValueError: the model is not sliced.
    """
    check_sliced(model)
    config = model.config
    record = config.slicegpt or {}
    base = public_name(record.get("base_model") or "")
    on_hub = "/" in base
    head = type(model).__name__.partition("For")[2]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINES.get(head),
        # No base_model_relation: the Hub knows finetune, adapter, merge and quantized, and slicing is none of them.
        base_model=base if on_hub else None,
        tags=list(TAGS),
        **({"license": license} if license else _license_of_base(model, base if on_hub else None, token)),
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        ours=OURS,
        title=repo_id.rpartition("/")[2] if repo_id else f"{base.rpartition('/')[2] or config.model_type}, sliced",
        base=f"[{base}](https://huggingface.co/{base})" if on_hub else base or "A language model",
        change=_parameter_change(record),
        perplexity=_perplexity(record),
        recovery=_recovery(record),
        auto_class=f"AutoModelFor{head}" if head else "AutoModel",
        location=repo_id or "path/to/this/folder",
        picture=picture,
        # A bar ends a cell, and a file may be called anything.
        settings={name: value.replace("|", "\\|") for name, value in settings(config, record).items()},
    )


def save_picture(config: PreTrainedConfig, folder: Path) -> str | None:
    """
    Writes the card's picture, the width of the stream and the energy kept at every site.

    Args:
        config (`PreTrainedConfig`): of a sliced model.
        folder (`pathlib.Path`): where to, beside the card.

    Returns:
        `str`: name of the file. `None` without matplotlib, or if `config.slicegpt` does not tell the energies.
    """
    energy = (config.slicegpt or {}).get("energy_kept")
    if not energy or not is_matplotlib_available():
        return None
    from .figures import png, widths_and_energy  # which cannot be imported without matplotlib

    draw = partial(widths_and_energy, config.original_hidden_size, config.widths, energy)
    (folder / PICTURE).write_bytes(png(draw))
    return PICTURE


def public_name(name_or_path: str) -> str:
    """
    What may be published of the name that a model was loaded from.

    Args:
        name_or_path (`str`): a Hub id, a path, or "".

    Returns:
        `str`: a Hub id as it is, also if it is found in a path into the Hub's cache. Of any other path, its last
        component. Hence a name with a slash is a Hub id.
    """
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]", name_or_path)
    if cached:
        return cached[1].replace("--", "/")
    if not name_or_path or (_is_repo_id(name_or_path) and not os.path.exists(name_or_path)):
        return name_or_path
    return PureWindowsPath(os.path.abspath(name_or_path)).name  # which knows both kinds of slashes


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_sliced(model: PreTrainedModel) -> None:
    if not model.config.model_type.startswith("sliced_"):
        raise ValueError(
            f"model_type={model.config.model_type!r} is not that of a sliced model, which begins with 'sliced_'; "
            "slice the model first, with model.compress(SliceGPTConfig(...)), or publish it with its own push_to_hub."
        )


def _license_of_base(model: PreTrainedModel, base: str | None, token: bool | str | None) -> dict[str, str]:
    """The fields that name the licence on the base model's card; empty if no card can be reached or it names none."""
    folder = model.name_or_path
    data = _read_card(os.path.join(folder, "README.md")) if os.path.isdir(folder) else None
    if base and not (data and data.license):
        data = _ask_hub(base, token) or _read_card(try_to_load_from_cache(base, "README.md"))
    if not data or not data.license:
        return {}
    fields = {"license": data.license, "license_name": data.license_name}
    link = data.license_link
    if link and "://" in link:
        fields["license_link"] = link
    elif link and base:
        fields["license_link"] = f"https://huggingface.co/{base}/blob/main/{link}"
    return fields


def _read_card(path: Any) -> ModelCardData | None:
    if not isinstance(path, str) or not os.path.isfile(path):
        return None
    try:
        return ModelCard.load(path, ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError):
        return None


def _ask_hub(repo_id: str, token: bool | str | None) -> ModelCardData | None:
    # Not ModelCard.load, which tries for half a minute where there is no network.
    try:
        return HfApi(token=token).model_info(repo_id, timeout=5).card_data
    except (OSError, httpx.HTTPError):
        return None


# What the card says


def _parameter_change(record: dict[str, Any]) -> str | None:
    before, after = record.get("parameters_before"), record.get("parameters_after")
    if not before or not after:
        return None
    if after == before:
        return f"The number of parameters stayed the same, {before:,}."
    verb, more = ("grew", "more") if after > before else ("shrank", "fewer")
    return f"The model {verb} from {before:,} to {after:,} parameters: {abs(after / before - 1):.1%} {more}."


def _perplexity(record: dict[str, Any]) -> str | None:
    known = record.get("perplexity") or {}
    figures = [f"{known[when]:.2f} {when} slicing" for when in ("before", "after") if known.get(when) is not None]
    if not figures:
        return None
    on = f" on {known['dataset']}" if known.get("dataset") else ""
    return f"Perplexity{on}: {', '.join(figures)}."


def _recovery(record: dict[str, Any]) -> str | None:
    done = record.get("recovery")
    if not done:
        return None
    figures = [done.get(f"perplexity_{when}") for when in ("before", "after")]
    known = all(figure is not None for figure in figures)
    went = ": perplexity on held-out sequences went from {:.2f} to {:.2f}".format(*figures) if known else ""
    return f"It was fine-tuned after that{went}."


def settings(config: PreTrainedConfig, record: dict[str, Any]) -> dict[str, str]:
    """Rows of the card's table, without those that are not known."""

    def known(key: str, say: Any = str, given: dict[str, Any] = record) -> str | None:
        return None if given.get(key) is None else say(given[key])

    calibration, recovery = record.get("calibration") or {}, record.get("recovery") or {}
    training = recovery.get("settings") or {}
    rows = {
        "Sparsity asked for": known("sparsity", "{:.1%} of the hidden dimensions".format),
        "Reduction asked for": known("parameter_reduction", "{:.1%} of the parameters".format),
        "Axes": known("rotation", {"per_block": "of every block's own", "shared": "shared by all blocks"}.get),
        "Readers and writers": known("refit", {True: "fitted again", False: "rotated"}.get),
        "Metric": known("metric"),
        "Hidden size before": known("original_hidden_size", given=vars(config)),
        "Width of the residual stream": known("widths", _widths, given=vars(config)),
        "Neurons kept in each MLP": known("intermediate_sizes", span, given=vars(config)) or known("inner"),
        "Widths rounded down to multiples of": known("round_to"),
        "Input of the head": known("slice_head", lambda sliced: "sliced" if sliced else "whole"),
        "Embeddings": known("embeddings"),
        "Orientation": known("orientation"),
        "Energy kept at a site": known(
            "energy_kept", lambda kept: f"{sum(kept) / len(kept):.1%} on average, {min(kept):.1%} at least"
        ),
        "Calibration data": known("source", given=calibration),
        "Calibration tokens": known("tokens", "{:,}".format, given=calibration),
        "Calibration dtype": known("dtype"),
        "Seed": known("seed"),
        "Fine-tuned": known("full", {True: "all parameters", False: "with LoRA"}.get, given=training),
        "Rank of LoRA": None if training.get("full") else known("lora_rank", given=training),
        "Fine-tuned on": known("source", given=recovery),
        "Fine-tuned for": known("steps", "{:,} steps".format, given=recovery),
        "Learning rate": known("learning_rate", given=training),
        "Learned from": known("distill", {True: "the dense model, too", False: "data alone"}.get, given=training),
    }
    return {name: value for name, value in rows.items() if value is not None}


def _widths(widths: list[int]) -> str:
    counts = Counter(widths)
    if len(counts) > 3:
        return f"{min(counts)} to {max(counts)}"
    return ", ".join(f"{width} ({count} site{'s' * (count > 1)})" for width, count in counts.items())
