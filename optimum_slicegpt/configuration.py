"""Settings of slicing: [`SliceGPTConfig`]."""

import copy
import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from .validation import Validated, file_size, is_int, is_number, storable_dataset


DEFAULT_REDUCTION = 0.2
"""The `parameter_reduction` of a configuration that says nothing about the size."""
SIZES = ("parameter_reduction", "max_loss", "fit_memory", "sparsity", "widths")
"""Settings that say how much to delete. One of them is given."""
ORIENTATIONS = ("pca", "random")
ROTATIONS = ("per_block", "shared")
METRICS = ("none", "fisher")
SCHEDULES = ("uniform", "energy")
ARCHITECTURES = ("auto", "stock", "sliced")
EMBEDDINGS = ("auto", "narrow", "tied", "sliced")


@dataclass(repr=False)
class SliceGPTConfig(Validated, QuantizationConfigMixin):
    """
    Settings of slicing. They are validated when they are built, and survive a JSON round trip.

    Args:
        sparsity (`float`, *optional*):
            Share of hidden dimensions to delete, in [0, 1): the paper's word. Shortcuts add weights, and tied
            embeddings may keep theirs, so the share of parameters is another; every run reports it.
        widths (`int` or `list[int]`, *optional*):
            Width at every site, instead of `sparsity`: before each attention, MLP and the final norm. One for all.
        parameter_reduction (`float`, *optional*):
            Share of all parameters to delete, in [0, 1), instead of `sparsity` and `widths`. Shortcuts, the head and
            the embedding count. 0.2 if nothing else says how much.
        max_loss (`float`, *optional*):
            Nats per token that the model may lose, instead of a size: the smallest one that keeps it is searched for,
            by slicing and measuring. It is the mean over the kinds of text that the model is calibrated on, on text
            that it does not see. exp of it is the ratio of perplexities.
        fit_memory (`int` or `str`, *optional*), context (`int`, *optional*):
            Bytes, or `"6GB"`, that weights may take with the cache of a sequence of `context` tokens, instead of a
            size. Both are counted in the dtype of the model. Without `context` no cache is counted.
        mlp_sparsity (`float`, *optional*):
            Share of the neurons of each MLP to delete, in [0, 1); needs `refit`. By default none, or with
            `parameter_reduction` and `refit` the share that goes best with the width.
        schedule (`str`, defaults to `"uniform"`):
            How many neurons each MLP keeps. `"uniform"`: all MLPs as many, as a stock architecture needs it.
            `"energy"`: more neurons where they add more to the stream, which does less damage, above all to texts
            unlike the calibration data; needs `rotation="shared"`.
        rotation (`str`, defaults to `"shared"`):
            `"shared"`: all sites have the same axes and one width. There are no shortcuts and, with a head of its own,
            the architecture is one that the family has, see [`export`]. `"per_block"`: every site has axes of its own,
            and every block a shortcut, as in the paper.
        refit (`bool`, defaults to `True`):
            Whether each block's readers and writers are fitted, in order, so that the sliced stream follows the dense
            stream. The paper does not fit them.
        refine (`int`, *optional*):
            Steps for which each MLP is trained, once it is fitted, to write what its writer was fitted to; part of
            `refit`. A step takes 2,048 tokens through one MLP. No token is taken more than four times. By default 30,
            and more in proportion where there are more than 32,768 tokens, up to 120.
        metric (`str`, defaults to `"none"`):
            How deviations of the stream are weighted. `"none"`: all directions alike. `"fisher"`: by the second moment
            of the loss gradient, which takes a backward pass.
        architecture (`str`, defaults to `"auto"`):
            Class of the result. `"stock"`: one that transformers has, which needs no code of this package: the
            family's own, or for some widths a class that computes the same. `"sliced"`: this package's, which holds
            what no stock class can. `"auto"`: stock where the settings and the family allow it.
        round_to (`int`, *optional*), round_neurons_to (`int`, *optional*):
            The hidden size and the number of neurons are multiples of these, because kernels compute such sizes
            faster and quantizers need whole blocks. By default the largest power of two that divides the dense size,
            at most 1/16 of it and at most 256. They are rounded down or, with `parameter_reduction`, the best
            multiples. If no multiples come near enough to it, smaller steps are taken.
        slice_head (`bool`, defaults to `False`):
            With `rotation="per_block"`, whether the last site is sliced too. By default the head reads all D
            dimensions, as in the paper. Shared axes always slice the last site.
        embeddings (`str`, defaults to `"auto"`):
            How a head that is tied to the embedding is sliced. `"narrow"` slices their shared matrix once, with the
            stream; the final norm gets gains. `"tied"` keeps the shared V × D matrix, and puts a linear layer behind
            the embedding and another before the head; a head of its own keeps its D dimensions, too. `"sliced"`
            slices both, which unties them. `"auto"` is `"narrow"` in a stock architecture; in a sliced one it is
            `"tied"` or `"sliced"`, whichever has fewer parameters, and with `parameter_reduction` it is `"tied"`.
        orientation (`str`, defaults to `"pca"`):
            `"pca"`, or `"random"` to turn the axes that every site keeps by a random rotation. The model computes the
            same, with outliers spread over all dimensions, which is meant for a later quantization.
        dataset (defaults to `"auto"`):
            Calibration data: a name (`"pile-10k"`, `"wikitext2"`, `"ptb"`, `"c4"`, `"alpaca"`, `"python"`,
            `"python-docs"`), `"self"` for text that the model itself writes, a path or list of paths to txt, json,
            jsonl or parquet files, a list of strings, rows (a table, or mappings with a column of strings), or
            tokenised batches (mappings with `input_ids` of shape `(B, T)` and perhaps `attention_mask`), used as they
            are. `"auto"` is `"pile-10k"` if the Hub or its cache answers, and otherwise `"python"`, which needs no
            network. A list of names, or of names and paths, is a mixture with the same number of sequences of each.
            Beside text, the model writes half, see `own_tokens`.
        text_column (`str`, *optional*):
            Column of a table that holds the text. `"text"`, or the table's only column, by default.
        nsamples (`int`, defaults to 128): number of calibration sequences, own text included.
        seqlen (`int`, defaults to 2048): tokens per sequence, at most what the model's positions allow.
        own_tokens (`int`, *optional*):
            How many of the calibration tokens the model writes itself. By default half of them, at most 65,536, where
            the data is text, and none where it is tokens, to which they are added. Later runs find them in `HF_HOME`.
        batch_size (`int`, defaults to 8): sequences per forward; of own text, which is in shorter ones, more.
        seed (`int`, *optional*, defaults to 0):
            Picks the sequences and draws random rotations. `None` takes the first sequences in order.
        tokenizer (`str`, path or tokenizer, *optional*):
            Turns text into tokens. Loaded from `model.name_or_path` by default.
        device (`str`, *optional*): device that computes, one layer at a time. The model's own by default.
        dtype (`str`, *optional*):
            dtype in which layers compute. By default the model's own, or float32 where the device does not multiply
            that in its hardware; with `"auto"` also bfloat16 instead of float32 where it does.
        offload_activations (`bool`, defaults to `False`): whether calibration activations are kept in host memory.

    Raises:
        TypeError: a key is unknown.
        ValueError: a value is out of range, or contradicts another.
    """

    sparsity: float | None = None
    widths: int | list[int] | None = None
    parameter_reduction: float | None = None
    max_loss: float | None = None
    fit_memory: int | str | None = None
    context: int | None = None
    mlp_sparsity: float | None = None
    schedule: str = "uniform"
    rotation: str = "shared"
    refit: bool = True
    refine: int | None = None
    metric: str = "none"
    architecture: str = "auto"
    round_to: int | None = None
    round_neurons_to: int | None = None
    slice_head: bool = False
    embeddings: str = "auto"
    orientation: str = "pca"
    dataset: Any = "auto"
    text_column: str | None = None
    nsamples: int = 128
    seqlen: int = 2048
    own_tokens: int | None = None
    batch_size: int = 8
    seed: int | None = 0
    tokenizer: Any = None
    device: str | None = None
    dtype: str | None = None
    offload_activations: bool = False
    quant_method: str = field(default="slicegpt", kw_only=True)  # As a field of the base class, it would come first.

    def __new__(cls, *args, **kwargs):
        # `__new__` runs before `__init__`, whose own error would not name the nearest key.
        known = [entry.name for entry in fields(cls)]
        for key in kwargs:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
                raise TypeError(f"SliceGPTConfig has no key {key!r}. {hint}Keys: {', '.join(known)}.")
        return super().__new__(cls)

    def __post_init__(self):
        self._require_bools("refit", "slice_head", "offload_activations")
        self._require("quant_method", self.quant_method == "slicegpt", "a SliceGPTConfig holds 'slicegpt'")
        self._check_size()
        shares = {"sparsity": "dimensions", "parameter_reduction": "parameters", "mlp_sparsity": "neurons"}
        for key, deleted in shares.items():
            value = getattr(self, key)
            holds = value is None or (is_number(value) and 0 <= value < 1)
            number = re.fullmatch(r"([1-9]\d?(\.\d+)?) ?%?", str(value))  # also in text, such as "20%"
            percent = f"; {number[1]} percent are {float(number[1]) / 100:g}" if number else ""
            self._require(key, holds, f"give the share of {deleted} to delete, in [0, 1){percent}")
        for key in ("round_to", "round_neurons_to", "nsamples", "seqlen", "batch_size"):
            value = getattr(self, key)
            holds = (value is None and key.startswith("round")) or (is_int(value) and value >= 1)
            self._require(key, holds, "give a positive integer")
        holds = self.refine is None or (is_int(self.refine) and self.refine >= 0)
        self._require("refine", holds, "give a number of steps, 0 for none, or None for as many as pay")
        holds = self.own_tokens is None or (is_int(self.own_tokens) and self.own_tokens >= 0)
        self._require("own_tokens", holds, "give a number of tokens, 0 for none, or None for half of them")
        holds = self.seed is None or (is_int(self.seed) and self.seed >= 0)
        self._require("seed", holds, "give a non-negative integer, or None for no shuffling")
        self._check_neurons()
        choices = {"rotation": ROTATIONS, "metric": METRICS, "schedule": SCHEDULES, "orientation": ORIENTATIONS}
        for key, names in (choices | {"embeddings": EMBEDDINGS, "architecture": ARCHITECTURES}).items():
            self._require_choice(key, names)
        if self.architecture == "stock" and self.stock_obstacle():
            raise ValueError(f"architecture='stock' with {self.stock_obstacle()}; leave either out.")
        self._require_dtype("dtype", others=(None, "auto"))
        self._require_device("device")

    def _check_size(self):
        """Checks that at most one setting says how much to delete, and that widths are positive integers."""
        given = [key for key in SIZES if getattr(self, key) is not None]
        if len(given) > 1:
            first, second = given[:2]
            raise ValueError(
                f"Both {first}={getattr(self, first)} and {second} are given; each says how much to delete, so leave "
                "one out."
            )
        if not given:
            self.parameter_reduction = DEFAULT_REDUCTION
        holds = self.max_loss is None or (is_number(self.max_loss) and self.max_loss > 0)
        self._require("max_loss", holds, "give nats per token that the model may lose, more than 0")
        if self.fit_memory is not None:
            file_size(self.fit_memory)
        holds = self.context is None or (is_int(self.context) and self.context >= 1 and self.fit_memory is not None)
        self._require("context", holds, "give a positive number of tokens, with fit_memory, or leave it out")
        if self.widths is None:
            return
        if isinstance(self.widths, Iterable):
            self.widths = list(self.widths)
        widths = self.widths if isinstance(self.widths, list) else [self.widths]
        holds = len(widths) > 0 and all(is_int(width) and width >= 1 for width in widths)
        self._require("widths", holds, "give one positive integer per site")
        self._require(
            "widths",
            self.rotation == "per_block" or len(set(widths)) == 1,
            f"with rotation={self.rotation!r} all sites must be equally wide; use rotation='per_block' for widths "
            "that differ",
        )

    def _check_neurons(self):
        """Checks that settings about deleted neurons fit the method."""
        if self.mlp_sparsity and not self.refit:
            raise ValueError(
                f"mlp_sparsity={self.mlp_sparsity} with refit=False: neurons are chosen, and compensated for, by the "
                "regression of a refit; leave mlp_sparsity out or use refit=True."
            )
        solved = any(getattr(self, key) is not None for key in ("parameter_reduction", "max_loss", "fit_memory"))
        deletes_neurons = self.mlp_sparsity or (self.mlp_sparsity is None and solved)
        if self.schedule != "uniform" and not (deletes_neurons and self.refit):
            raise ValueError(
                f"schedule={self.schedule!r} shares out the neurons that are deleted, and none are; leave it out, or "
                "use refit=True with parameter_reduction or mlp_sparsity."
            )
        if self.schedule != "uniform" and self.rotation == "per_block":
            raise ValueError(
                f"schedule={self.schedule!r} with rotation='per_block': where widths differ, neurons differ in size, "
                "and the model would not be as large as planned; use rotation='shared'."
            )

    def stock_obstacle(self) -> str | None:
        """
        Says which setting needs a sliced class, whatever the model, and why.

        Returns:
            `str`: the setting and the reason; `None` if there is no such setting.
        """
        if self.rotation == "per_block":
            return "rotation='per_block': no stock class has linear layers on its residual connections"
        if self.schedule != "uniform":
            return f"schedule={self.schedule!r}: no stock class has MLPs that differ in size"
        if self.embeddings == "tied":
            return "embeddings='tied': no stock class has projections on either side of a shared matrix"
        return None

    def __deepcopy__(self, memo):
        # Auto classes deep-copy their arguments. A stream of batches cannot be copied, and a tokenizer should not be.
        held = {id(value): value for value in (self.dataset, self.tokenizer)}
        twin = super().__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo | held))
        return twin

    def __iter__(self):
        yield from self.__dict__.items()

    def to_dict(self) -> dict[str, Any]:
        """
        Returns all settings that JSON can hold. A tokenizer object, tensors and streams of batches are left out.

        Returns:
            `dict`: arguments for [`SliceGPTConfig.from_dict`].
        """
        values = dict(self.__dict__)
        if isinstance(self.tokenizer, str | os.PathLike):
            values["tokenizer"] = os.fspath(self.tokenizer)
        else:
            values["tokenizer"] = None
        return values | {"dataset": storable_dataset(self.dataset)}
