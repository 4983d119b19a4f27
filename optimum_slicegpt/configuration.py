"""How to compress: [`SliceGPTConfig`]."""

import copy
import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin


DEFAULT_REDUCTION = 0.2
ORIENTATIONS = ("pca", "random")
ROTATIONS = ("per_block", "shared")
METRICS = ("none", "fisher")
SCHEDULES = ("uniform", "energy")
EMBEDDINGS = ("auto", "tied", "sliced")
DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(repr=False)
class SliceGPTConfig(QuantizationConfigMixin):
    """
    How to slice a model. Validated when built; survives a JSON round trip.

    Args:
        sparsity (`float`, *optional*):
            Share of hidden dimensions to delete, in [0, 1): the paper's word. Shortcuts add weights back and tied
            embeddings stay as they are, so the true change in parameters is another; every run reports it.
        widths (`list[int]`, *optional*):
            Width at every site, in place of `sparsity`: before each attention, before each MLP, before the final norm.
        parameter_reduction (`float`, *optional*):
            Share of all parameters to delete, in [0, 1), in place of `sparsity` and `widths`: shortcuts, heads tied
            or not, everything counted. 0.2 if none of the three is given.
        mlp_sparsity (`float`, *optional*):
            Share of the neurons inside each MLP to delete, in [0, 1); needs `refit`. By default none, or with
            `parameter_reduction` and `refit` the share that goes best with the width.
        schedule (`str`, defaults to `"uniform"`):
            How neurons that are deleted are shared out among the MLPs: `"uniform"` leaves each as many, as a stock
            architecture wants it; `"energy"` leaves more where they add more to the stream, which does less damage,
            above all to texts unlike the calibration data. Needs `rotation="shared"`.
        rotation (`str`, defaults to `"shared"`):
            `"shared"` gives all sites the same axes and one width: no shortcuts, and an architecture that the family
            itself has, see [`export`]. `"per_block"` gives every site axes of its own, and with them a shortcut to
            every block, as in the paper.
        refit (`bool`, defaults to `True`):
            Whether each block's readers and writers are fitted, in order, so that the sliced stream follows the dense
            one. The paper does not.
        metric (`str`, defaults to `"none"`):
            How deviations of the stream are weighed: `"none"` weighs all directions alike, `"fisher"` by the second
            moment of the loss gradient, which takes a backward pass.
        round_to (`int`, defaults to 8):
            Widths and neurons are multiples of this, which GPUs want: rounded down, or with `parameter_reduction` the
            best ones, and if none come near enough, widths are not, with a warning.
        slice_head (`bool`, defaults to `False`):
            Whether the last site is sliced too. By default the head reads all D dimensions, as in the paper.
        embeddings (`str`, defaults to `"auto"`):
            What becomes of a head that is tied to the embedding. `"tied"` leaves their one V × D matrix alone and puts
            a small linear layer behind the embedding and another before the head; `"sliced"` narrows each, which
            unties them. `"auto"` takes the smaller.
        orientation (`str`, defaults to `"pca"`):
            `"pca"`, or `"random"` to spin the kept axes at every site by a random rotation: the same function, with
            outliers spread over all dimensions, which helps a later quantization.
        dataset (defaults to `"auto"`):
            Calibration data: a name (`"wikitext2"`, `"ptb"`, `"c4"`, `"alpaca"`, `"python-docs"`), `"self"` for text
            that the model itself writes, a path or list of paths to txt, json, jsonl or parquet files, a list of
            strings, or tokenised batches (mappings with `input_ids` of shape `(B, T)` and perhaps `attention_mask`),
            used as they are. `"auto"` is `"wikitext2"` where the Hub or its cache answers and otherwise
            `"python-docs"`, which needs no network. A list of names, or of names and paths, is a mixture, to which
            each gives the same number of sequences.
        text_column (`str`, *optional*): column of a table that holds the text. `"text"`, or the only one, by default.
        nsamples (`int`, defaults to 128): number of calibration sequences.
        seqlen (`int`, defaults to 2048): tokens per sequence, at most what the model's positions allow.
        batch_size (`int`, defaults to 8): sequences per forward.
        seed (`int`, *optional*, defaults to 0):
            Picks the sequences and draws random rotations. `None` takes the first sequences in order.
        tokenizer (`str` or tokenizer, *optional*):
            Turns text into tokens. Found through `model.name_or_path` by default.
        device (`str`, *optional*): computes one layer at a time here. The model's own device by default.
        dtype (`str`, *optional*): of the calibration pass. The model's own by default.
        offload_activations (`bool`, defaults to `False`): keep the calibration activations in host memory.

    Raises:
        TypeError: an unknown key.
        ValueError: a value that cannot be.
    """

    sparsity: float | None = None
    widths: list[int] | None = None
    parameter_reduction: float | None = None
    mlp_sparsity: float | None = None
    schedule: str = "uniform"
    rotation: str = "shared"
    refit: bool = True
    metric: str = "none"
    round_to: int = 8
    slice_head: bool = False
    embeddings: str = "auto"
    orientation: str = "pca"
    dataset: Any = "auto"
    text_column: str | None = None
    nsamples: int = 128
    seqlen: int = 2048
    batch_size: int = 8
    seed: int | None = 0
    tokenizer: Any = None
    device: str | None = None
    dtype: str | None = None
    offload_activations: bool = False
    quant_method: str = field(default="slicegpt", kw_only=True)  # a field of the base class, which would come first

    def __new__(cls, *args, **kwargs):
        # Before `__init__`, whose own error would not name the nearest key.
        known = [entry.name for entry in fields(cls)]
        for key in kwargs:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
                raise TypeError(f"SliceGPTConfig has no key {key!r}. {hint}Keys: {', '.join(known)}.")
        return super().__new__(cls)

    def __post_init__(self):
        if self.quant_method != "slicegpt":
            raise ValueError(f"quant_method={self.quant_method!r}; a SliceGPTConfig holds 'slicegpt'.")
        if self.sparsity is not None and self.widths is not None:
            raise ValueError(
                f"Both sparsity={self.sparsity} and widths are given; widths say it all, so leave sparsity out."
            )
        if self.parameter_reduction is not None:
            for key in ("sparsity", "widths"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"Both parameter_reduction={self.parameter_reduction} and {key} are given; the reduction "
                        f"determines the widths, so leave {key} out."
                    )
        if self.widths is not None:
            if isinstance(self.widths, Iterable):
                self.widths = list(self.widths)
            listed = isinstance(self.widths, list) and len(self.widths) > 0
            if not listed or not all(_is_int(width) and width >= 1 for width in self.widths):
                raise ValueError(f"widths={self.widths}; give one positive integer per site.")
            if self.rotation == "shared" and len(set(self.widths)) > 1:
                raise ValueError(
                    f"widths={self.widths}; with rotation='shared' all sites must be equally wide; "
                    "use rotation='per_block' for widths that differ."
                )
        elif self.sparsity is None and self.parameter_reduction is None:
            self.parameter_reduction = DEFAULT_REDUCTION
        shares = {"sparsity": "dimensions", "parameter_reduction": "parameters", "mlp_sparsity": "neurons"}
        for key, what in shares.items():
            share = getattr(self, key)
            if share is not None and (not _is_number(share) or not 0 <= share < 1):
                raise ValueError(f"{key}={share!r}; give the share of {what} to delete, in [0, 1).")
        for key in ("round_to", "nsamples", "seqlen", "batch_size"):
            if not _is_int(getattr(self, key)) or getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)!r}; give a positive integer.")
        if self.seed is not None and (not _is_int(self.seed) or self.seed < 0):
            raise ValueError(f"seed={self.seed!r}; give a non-negative integer, or None for no shuffling.")
        if self.mlp_sparsity and not self.refit:
            raise ValueError(
                f"mlp_sparsity={self.mlp_sparsity} with refit=False: neurons are chosen, and made up for, by the "
                "regression of a refit; leave mlp_sparsity out or use refit=True."
            )
        deletes_neurons = self.mlp_sparsity or (self.mlp_sparsity is None and self.parameter_reduction is not None)
        if self.schedule == "energy" and not (deletes_neurons and self.refit):
            raise ValueError(
                "schedule='energy' shares out the neurons that are deleted, and none are; leave it out, or use "
                "refit=True with parameter_reduction or mlp_sparsity."
            )
        if self.schedule == "energy" and self.rotation == "per_block":
            raise ValueError(
                "schedule='energy' with rotation='per_block': where widths differ, neurons differ in size, and the "
                "model would not be as large as planned; use rotation='shared'."
            )
        if isinstance(self.dtype, torch.dtype):
            self.dtype = str(self.dtype).removeprefix("torch.")
        choices = {
            "rotation": ROTATIONS,
            "metric": METRICS,
            "schedule": SCHEDULES,
            "orientation": ORIENTATIONS,
            "embeddings": EMBEDDINGS,
            "dtype": (None, *DTYPES),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                names = ", ".join(name for name in allowed if name)
                raise ValueError(f"{key}={getattr(self, key)!r}; choose one of {names}.")
        if self.device is not None:
            self.device = str(self.device)
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"device={self.device!r} is not a torch device, such as 'cpu' or 'cuda:0'."
                ) from error

    def __deepcopy__(self, memo):
        # Auto classes deep-copy their arguments; a tokenizer or a stream of batches cannot or should not be copied.
        held = {id(value): value for value in (self.dataset, self.tokenizer)}
        twin = super().__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo | held))
        return twin

    def __iter__(self):
        yield from self.__dict__.items()

    def to_dict(self) -> dict[str, Any]:
        """
        Everything that JSON can hold: a tokenizer object, tensors and streams of batches are left out.

        Returns:
            `dict`: arguments for [`SliceGPTConfig.from_dict`].
        """
        values = dict(self.__dict__)
        if not isinstance(self.tokenizer, str):
            values["tokenizer"] = None
        dataset = self.dataset
        if isinstance(dataset, os.PathLike):
            values["dataset"] = os.fspath(dataset)
        elif isinstance(dataset, list | tuple) and all(isinstance(item, str | os.PathLike) for item in dataset):
            values["dataset"] = [os.fspath(item) for item in dataset]
        elif not isinstance(dataset, str):
            values["dataset"] = None
        return values


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)
