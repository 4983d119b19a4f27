"""The model card of a sliced model."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.utils import httpx
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_matplotlib_available

from ..modeling.checks import check_sliced
from ..record import public_name
from .text import format_loss, list_settings, plain_markdown, stream_sizes


TAGS = ("slicegpt", "optimum-slicegpt", "compressed", "pruning", "arxiv:2401.15024")
CARD_MARK = (
    "<!-- Written by optimum-slicegpt, and rewritten by push_to_hub. Remove this line to keep a card of your own. -->"
)
"""The line by which `push_to_hub` recognises a card that nobody has edited."""
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
PICTURE = "slicegpt.png"
UNSLICED_REMEDY = (
    "slice the model first, with model.compress(SliceGPTConfig(...)), or publish it with its own push_to_hub"
)
"""Ends the message for a model that is not sliced."""
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
    Writes the model card of a sliced model from `config.slicegpt`. A fact that is not known is not mentioned.

    Args:
        model (`PreTrainedModel`): a sliced model.
        repo_id (`str`, *optional*): where it is published, for the title and the code to load it.
        license (`str`, *optional*):
            The licence. By default it is that of the base model's card, which is looked for in the model's folder, on
            the Hub and in the Hub's cache. The Hub is asked once and has 5 seconds to answer. Without such a card no
            licence is named.
        picture (`str`, *optional*): name of a picture file beside the card; [`save_picture`] writes one.
        token (`bool` or `str`, *optional*): for the question to the Hub.

    Returns:
        `huggingface_hub.ModelCard`: to be saved as README.md. It holds no local paths.

    Raises:
        ValueError: the model is not sliced.
    """
    check_sliced(model, UNSLICED_REMEDY)
    config = model.config
    record = config.slicegpt or {}
    base = public_name(str(record.get("base_model") or ""))
    on_hub = "/" in base
    head = type(model).__name__.partition("For")[2]
    hidden_size, widths = stream_sizes(config)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINES.get(head),
        # No base_model_relation fits: the Hub knows finetune, adapter, merge and quantized.
        base_model=base if on_hub else None,
        tags=list(TAGS),
        **({"license": license} if license else _license_of_base(model, base if on_hub else None, token)),
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        mark=CARD_MARK,
        title=plain_markdown(
            repo_id.rpartition("/")[2] if repo_id else f"{base.rpartition('/')[2] or config.model_type}, sliced"
        ),
        base=f"[{base}](https://huggingface.co/{base})" if on_hub else plain_markdown(base) or "A language model",
        change=_parameter_change(record),
        perplexity=_perplexity(record),
        loss=_loss(record),
        recovery=_recovery(record),
        auto_class=f"AutoModelFor{head}" if head else "AutoModel",
        architecture=type(model).__name__,
        narrower=min(widths) < hidden_size,
        needs_code=hasattr(config, "original_hidden_size"),
        features=_features(record, hidden_size, widths),
        location=repo_id or "path/to/this/folder",
        picture=picture,
        # The record may be of somebody else, and the name of a file may hold a bar, which would end the table's cell.
        settings={name: plain_markdown(value) for name, value in list_settings(config, record).items()},
    )


def save_picture(config: PreTrainedConfig, folder: Path) -> str | None:
    """
    Writes the card's picture: the width of the stream and the energy kept at every site.

    Args:
        config (`PreTrainedConfig`): of a sliced model.
        folder (`pathlib.Path`): the folder of the card.

    Returns:
        `str`: name of the file. `None` without matplotlib, or if `config.slicegpt` does not hold the energies.
    """
    energy = (config.slicegpt or {}).get("energy_kept")
    if not energy or not is_matplotlib_available():
        return None
    from .figures import draw_widths, render_png  # This module cannot be imported without matplotlib.

    draw = partial(draw_widths, *stream_sizes(config), energy)
    (folder / PICTURE).write_bytes(render_png(draw))
    return PICTURE


def _license_of_base(model: PreTrainedModel, base: str | None, token: bool | str | None) -> dict[str, str]:
    """Returns the fields that name the licence on the base model's card. Without such a card there are none."""
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
    # ModelCard.load would try for half a minute where there is no network.
    try:
        return HfApi(token=token).model_info(repo_id, timeout=5).card_data
    except (OSError, httpx.HTTPError):
        return None


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
    on = f" on {plain_markdown(str(known['dataset']))}" if known.get("dataset") else ""
    return f"Perplexity{on}: {', '.join(figures)}."


def _loss(record: dict[str, Any]) -> str | None:
    texts = (record.get("check") or {}).get("texts")
    if not texts:
        return None
    kinds = (f"{format_loss(text['loss'], text['stderr'])} on {plain_markdown(kind)}" for kind, text in texts.items())
    return f"Loss on text that it was not calibrated on, sliced less dense, in nats per token: {', '.join(kinds)}."


def _features(record: dict[str, Any], hidden_size: int, widths: list[int]) -> str | None:
    """Returns why features of the body are other ones than the dense model's, or `None` where they are the same."""
    whole = record.get("architecture") == "stock" and min(widths) == hidden_size
    if record.get("embeddings") not in ("narrow", "sliced") or (whole and record["embeddings"] == "narrow"):
        return None  # The final norm puts out what the dense head would read, up to what slicing loses.
    if whole:
        return "the head holds the gain of the final norm"
    return "they are in another basis" + " and fewer" * (widths[-1] < hidden_size)


def _recovery(record: dict[str, Any]) -> str | None:
    done = record.get("recovery")
    if not done:
        return None
    figures = [done.get(f"perplexity_{when}") for when in ("before", "after")]
    known = all(figure is not None for figure in figures)
    went = ": perplexity on held-out sequences went from {:.2f} to {:.2f}".format(*figures) if known else ""
    return f"It was fine-tuned after that{went}."
