"""Writes `supported_models.md` from the table of families: `python docs/generate_supported_models.py`."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from optimum_slicegpt.modeling.families import FAMILIES, NOT_SLICEABLE, TOWERS
from optimum_slicegpt.modeling.family import EXPERTS_KEEP_WIDTH, Family


MEAN = "a LayerNorm subtracts a mean, and the head needs it"

HEADS = "it derives the size of its heads from the hidden size"

SIZES = "it derives sizes inside its blocks from the hidden size"

LOADED_AS = {
    "gpt-sw3": "gpt2",
    "llama4": "llama4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
"""Types whose causal language models are those of another type, or the text model of a larger one."""

OTHERS = {
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xmod": "encoders that also run as decoders",
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper "
    "musicgen musicgen_melody": "decoders that belong to encoders: cross-attention is a third block",
    "dots3_note emu3 fuyu gemma4_assistant gemma4_unified_assistant git "
    "mllama moshi moss_transcribe_diarize phi4_multimodal": "parts of models of images or speech",
    "deepseek_v4 hy_v4 qwen4_exp qwen4_exp_text": "several residual streams, mixed by hyper-connections",
    "rwkv xlstm ctrl reformer xlnet cpmant blt hrm_text inkling_text inkling2_text": "other architectures",
    "zamba zamba2": "layers that share their weights, and read the embeddings once more",
    "bitnet": "a norm over all neurons inside the MLP",
    "phimoe": "norms with biases, which would move into its experts, and those are stacks without biases",
    "jetmoe": "a mixture of attention heads",
    "longcat_flash": "two blocks of attention in a layer, and experts beside them",
    "glm_moe_dsa axk2": "layers that hand indices on to the next one, or norms with gates",
    "dbrx": "norm and attention in one module",
    "gpt_neox_japanese modernbert-decoder": "other arguments, or biases beside the blocks",
    "xglm": "attention that overflows in float64, in which slicing is tested",
}
"""Types that no row describes yet, and what is in the way."""

FILE = Path(__file__).with_name("supported_models.md")

TEXT = """\
<!-- Written by docs/generate_supported_models.py from the table of families. -->

# Supported models

A family is a `model_type` of transformers, as `config.json` of a checkpoint names it. {count} can be sliced: the rows
below, those that load as one of them, and the text models of [models of images and text](#models-of-images-and-text).

{loaded_as}

{supported}

- **Norm**: a LayerNorm becomes an RMSNorm, exactly; an RMSNorm stays one. Gains and biases move into the weights that
  read the norm.
- **Blocks**: a sequential layer has two sites, one before attention and one before the MLP. A parallel layer has one,
  where both read the residual stream, through one norm or a norm each. Some layers are one block, of attention, a
  state space or an MLP. The final norm is one more site. Where norms are behind the blocks, their gains are fitted:
  exactly what the dense model computes if nothing is deleted.
- **Stock form**: the class of a result that needs no code of this package. Every family has one where the stream keeps
  its width and neurons alone are deleted: its own class. Other widths have one as the table says; the class then has
  an explicit `head_dim`. Where some tools divide the hidden size by the heads instead, the table names those that do
  not, and `parameter_reduction` leaves the width as it is if it can. A tied head stays tied in a stock class. With
  `architecture="auto"`, a result that has no stock form is of a sliced class.
- **Limits** are checked before any weight changes. Where two sites must be equally wide, `sparsity` leaves both at the
  width of the wider one, with a warning; `widths` that differ there are refused.

## Models of images and text

{towers}

Their text models are sliced: those that a row above describes (Llama, Mistral, Qwen2, Gemma, ...), and the own ones of
Qwen2-VL and Qwen3-VL, which no language model has. What encodes images stays as it is, and so do the table and the
head: images enter the residual stream beside the table. One projection leads from both to the narrower stream, another
back to the head. Where further features join the stream behind the first layers (Qwen3-VL), what writes them becomes
as narrow as the stream is there. The result is of its stock class, around a sliced text model, or of one derived from
it where the stock class takes one kind of text model only. It loads with `AutoModelForImageTextToText` once
`optimum_slicegpt` is imported. Calibration data may be what the model's processor returns, images included:

<!-- not run: an excerpt -->
```python
model = AutoModelForImageTextToText.from_pretrained(base)
batches = [processor(text=prompt, images=image, return_tensors="pt") for prompt, image in examples]
model.compress(SliceGPTConfig(parameter_reduction=0.2, dataset=batches))
```

By default it is text, as for other models. `parameter_reduction` counts the text model alone. These models are sliced
in memory; streaming, `recover` and the command line know language models only.

## Not supported

{refused}

Families that no row describes yet are refused, too:

{others}

A family whose layers read the residual stream,
and add the output of attention and of an MLP to it, needs a row: see [Adding a family](adding_a_family.md).
"""


def blocks(family: Family) -> str:
    """Says how the blocks of a layer share the residual stream, in every variant of a family."""
    kinds = []
    for variant in (family, *(replace(family, **changes) for _, _, changes in family.variants)):
        norms = "one norm" if variant.mlp_norm is None else "two norms"
        sequential = "one a layer" if variant.single else "sequential"
        if variant.post_norms:
            sequential += ", norms behind blocks" if variant.attn_norm is None else ", norms on both sides of blocks"
        kinds.append(f"parallel, {norms}" if variant.parallel else sequential)
    return "; ".join(dict.fromkeys(kinds))


def limits(family: Family) -> str:
    """Lists the limits that `families.family_of` and `families.check_equal_widths` check."""
    needed = by_reason((f"`{key}={value!r}`", reason) for key, value, reason in family.requires)
    found = [f"only with {keys}: otherwise {reason}" for keys, reason in needed]
    if family.post_norms:
        found.append("only with the default `rotation`, `refit` and `orientation`")
    if family.moe:
        places = "all equal widths" if len(family.blocks) == 1 else "equal widths before and after an MLP"
        found.append(f"{places}: {EXPERTS_KEEP_WIDTH}")
    if family.wide_entry:
        found.append(f"table and head keep their width: {family.wide_entry}")
    if not family.neurons_key:
        found.append("keeps its neurons, of which there are always four times as many as dimensions")
    if family.ends_meet:
        found.append(f"equal first and last widths where the head is not tied: {family.ends_meet}")
    return "; ".join(found)


def stock_form(model_type: str, family: Family) -> str:
    """Says which classes hold a narrower stream, with a head of its own and with a tied one."""
    found = []
    for each in family.narrower:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[each.model_type or model_type]
        conditions = ["its width is a multiple of the heads"] * each.by_heads
        conditions += [f"its width is a multiple of {each.multiple_of}"] * (each.multiple_of > 1)
        conditions += [f"`{key}={value!r}`" for key, value in each.requires]
        limited = f" ({each.only})" if each.only else ""
        found.append(f"`{name}`{limited}" + (f" if {' and '.join(conditions)}" if conditions else ""))
    if family.wide_entry:
        found.append("none: no stock class has projections between tables and stream")
    reasons = [", else ".join(found) or f"none: {SIZES if family.single or len(family.attn) > 1 else HEADS}"]
    for key, value, changes in family.variants:
        if "narrower" in changes:
            reasons.append(f"none if `{key}={value!r}`")
    if family.layer_norm and family.narrower:
        reasons.append(f"none with a tied head: {MEAN}")
    return "; ".join(reasons)


def by_reason(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Joins the names that share a reason."""
    names = defaultdict(list)
    for name, reason in pairs:
        names[reason].append(name)
    return [(", ".join(shared), reason) for reason, shared in names.items()]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def generate() -> dict[Path, str]:
    """Returns the text of `supported_models.md`."""
    rows = {key: family for key, family in FAMILIES.items() if key in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    supported = [
        (
            f"`{model_type}`",
            f"`{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]}`",
            "LayerNorm" if family.layer_norm else "RMSNorm",
            blocks(family),
            "yes" if family.moe else "",
            stock_form(model_type, family),
            limits(family),
        )
        for model_type, family in rows.items()
    ]
    text = TEXT.format(
        count=len(rows) + len({*LOADED_AS, *TOWERS}),
        loaded_as=table(("Family", "Loads as"), [(f"`{key}`", f"`{value}`") for key, value in LOADED_AS.items()]),
        others=table(
            ("Families", "What is in the way"),
            [(", ".join(f"`{key}`" for key in keys.split()), reason) for keys, reason in OTHERS.items()],
        ),
        supported=table(
            ("Family", "Class", "Norm", "Blocks", "Experts", "Stock form of another width", "Limits"), supported
        ),
        towers=table(
            ("Family", "Class"),
            [(f"`{key}`", f"`{MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[key]}`") for key in TOWERS],
        ),
        refused=table(("Families", "Why"), by_reason((f"`{key}`", reason) for key, reason in NOT_SLICEABLE.items())),
    )
    return {FILE: text}


if __name__ == "__main__":
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")
