"""[`SliceGPTQuantizer`]: the object behind every way to slice a model."""

import copy
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from .configuration import SliceGPTConfig
from .data.calibration import calibration_batches
from .distributed import Processes
from .evaluation.check import Check, error_for, judge_loss, tokens_for
from .modeling.checks import check_dense, check_sliceable
from .modeling.contexts import evaluating, undisturbed
from .modeling.towers import WIDE_ENTRY, has_tower, text_tower
from .modeling.wholes import put_back
from .planning.search import find_smallest
from .planning.settings import with_wide_entry
from .planning.widths import SlicePlan, sizes_to_try
from .progress import say
from .record import record_run
from .slicing.compress import compress
from .slicing.skeleton import replace_in_place, take_mode
from .slicing.twin import stock_twin
from .storage.files import saving


logger = logging.get_logger(__name__)


class SliceGPTQuantizer:
    """
    The object that slices causal language models; shaped like `optimum.gptq.GPTQQuantizer`.

    Args:
        config ([`SliceGPTConfig`]): how to slice.
    """

    def __init__(self, config: SliceGPTConfig):
        if not isinstance(config, SliceGPTConfig):
            raise TypeError(
                f"config must be a SliceGPTConfig, such as SliceGPTConfig(parameter_reduction=0.2); got {config!r}."
            )
        self.config = config

    def to_dict(self) -> dict[str, Any]:
        return self.config.to_dict()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> "SliceGPTQuantizer":
        return cls(SliceGPTConfig.from_dict(config_dict))

    @undisturbed()
    def quantize_model(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        *,
        check: bool = False,
        refuse_above: float | None = None,
    ) -> PreTrainedModel:
        """
        Slices a model in place: the object becomes an instance of its family's sliced class.

        With `config.max_loss` several sizes are sliced and compared, and the smallest that keeps it is taken. The best
        of them so far is in memory beside the dense model, and the next one.

        All checks run before anything changes. Several processes that each call this, with the same arguments, share
        out the calibration batches, and each gets the result. Like a model that was loaded, the result has no gradient
        checkpointing enabled and no parameters frozen, whatever the dense model had.

        Args:
            model (`PreTrainedModel`):
                A dense causal language model of a supported family, or a model of images and text around one, whose
                text tower is sliced.
            tokenizer (`str` or tokenizer, *optional*):
                For calibration data that is text. By default `config.tokenizer`, then `model.name_or_path`.
            check (`bool`): compare the result with the dense model, see [`Check`]; `config.slicegpt` gets `check`.
            refuse_above (`float`, *optional*):
                Nats per token that the model may lose, on the mean of the kinds of text. If it loses more, it stays
                dense. Implies `check`.

        Returns:
            `PreTrainedModel`: `model` itself.

        Raises:
            ConnectionError: another process has failed.
            ValueError: the model, the widths or the calibration data cannot be used; activations are not finite;
                processes were given different things; the model lost more than `refuse_above`, or with every size more
                than `max_loss`.
        """
        if has_tower(model):
            check_dense(model.config.text_config)
            tower, quantizer = text_tower(model), SliceGPTQuantizer(with_wide_entry(self.config, WIDE_ENTRY))
            with evaluating(model):
                quantizer.quantize_model(tower, tokenizer, check=check, refuse_above=refuse_above)
            put_back(model, tower)
            return model
        slicing = _Slicing(model, self.config, tokenizer)
        if self.config.max_loss is not None:
            sliced = slicing.within(self.config.max_loss, refuse_above)
        else:
            (sliced,) = slicing.to_sizes([self.config], check or refuse_above is not None, refuse_above)
        return replace_in_place(model, sliced)

    @undisturbed()
    def quantize_to_sizes(
        self,
        model: PreTrainedModel,
        reductions: Sequence[float],
        tokenizer: Any = None,
        *,
        check: bool = False,
    ) -> list[PreTrainedModel]:
        """
        Slices a model to several sizes, and leaves it as it is. Each result is what a run of its own makes. The text,
        the statistics, the dense stream and the losses of the dense model are there once for all.

        Args:
            model (`PreTrainedModel`): a dense causal language model of a supported family.
            reductions (`Sequence[float]`): for every size, the `parameter_reduction`.
            tokenizer (`str` or tokenizer, *optional*), check (`bool`): see [`SliceGPTQuantizer.quantize_model`].

        Returns:
            `list[PreTrainedModel]`: the sliced models, all in memory. They share the tensors that slicing leaves
            alone with the dense model and with each other.

        Raises:
            ConnectionError, ValueError: see [`SliceGPTQuantizer.quantize_model`].
        """
        configs = [replace(self.config, parameter_reduction=reduction) for reduction in reductions]
        found = _Slicing(model, self.config, tokenizer).to_sizes(configs, check)
        return [take_mode(model, sliced) for sliced in found]

    def save(self, model: PreTrainedModel, save_dir: str | os.PathLike, **kwargs) -> None:
        """
        Writes an ordinary checkpoint: `model.save_pretrained(save_dir, **kwargs)`.

        Raises:
            OSError: a write failed. The model can be saved elsewhere.
        """
        with saving(Path(save_dir)):
            model.save_pretrained(save_dir, **kwargs)

    @staticmethod
    def load(save_dir: str | os.PathLike, **kwargs) -> PreTrainedModel:
        """Reads a sliced checkpoint: `AutoModelForCausalLM.from_pretrained(save_dir, **kwargs)`."""
        return AutoModelForCausalLM.from_pretrained(save_dir, **kwargs)


class _Slicing:
    """A dense model that is to be sliced, with the settings and the tokenizer of the run."""

    def __init__(self, model, config, tokenizer):
        check_sliceable(model)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "This model is on the device meta, in part or all of it, so that there are no values; load its "
                "checkpoint, or slice that with compress_checkpoint."
            )
        if isinstance(config.dataset, Iterator):  # A check reads the data, too.
            config = replace(config, dataset=list(config.dataset))
        self._dense, self._config, self._tokenizer = stock_twin(model), config, tokenizer

    def to_sizes(self, configs, check, refuse_above=None) -> list[PreTrainedModel]:
        """Slices to the size of each configuration. If `check` says so, compares the results with the dense model."""
        dense_config = copy.deepcopy(self._dense.config)
        dense_config.dtype = self._dense.dtype  # `fit_memory` counts with it, and `model.to` changes the model alone.
        plans = [SlicePlan.from_config(config, dense_config) for config in configs]
        for plan, config in zip(plans, configs, strict=True):
            plan.check_rest(config, dense_config)
        batches = calibration_batches(self._dense, self._config, self._tokenizer)
        comparison = Check(self._dense, self._config, self._tokenizer) if check else None
        if refuse_above is not None:
            _require_texts(comparison, f"refuse_above={refuse_above}", "leave it out")
        found = self._slice(configs, plans, batches)
        for sliced in found if check else ():
            judge_loss(comparison.compare(sliced), refuse_above)
        return found

    def within(self, limit, refuse_above=None) -> PreTrainedModel:
        """
        Slices to the smallest size whose loss is within a limit.

        Raises:
            ValueError: there is no text to measure on; not even the largest size is within the limit, or that of
                `refuse_above`.
        """
        sizes = sizes_to_try(self._config, self._dense.config)
        batches = calibration_batches(self._dense, self._config, self._tokenizer)
        comparison = Check(self._dense, self._config, self._tokenizer, tokens_for(limit))
        _require_texts(comparison, f"max_loss={limit}", "give a size")
        dense = self._dense.num_parameters()
        shares = [1 - plan.num_parameters(self._dense) / dense for _, plan in sizes]
        processes, found, tried = Processes(self._config.device or self._dense.device), {}, {}

        def measure(index):
            config, plan = sizes[index]
            (sliced,) = self._slice([config], [plan], batches)
            loss = comparison.compare(sliced)
            loss = processes.agreed(torch.tensor(loss, dtype=torch.float64)).item()  # All go on with the same size.
            tried[shares[index]] = round(loss, 4) if math.isfinite(loss) else None  # JSON has no infinity.
            say(f"{shares[index]:.1%} fewer parameters lose {loss:.4f} nats per token; {limit:g} may be lost.")
            if loss <= limit:
                found.clear()  # The next one that is kept is smaller.
                found[index] = sliced
            return loss

        index = find_smallest(shares, limit, measure)
        if index < 0:
            raise ValueError(
                f"max_loss={limit}: {shares[0]:.1%} fewer parameters, the least that can go, lose more, "
                f"{tried[shares[0]]} nats per token; nothing is changed or written. Allow more, or calibrate on more "
                "or broader text."
            )
        check = found[index].config.slicegpt["check"]
        check |= {"max_loss": limit, "sizes": {f"{share:.1%} fewer": tried[share] for share in sorted(tried)}}
        if check["stderr"] is None or check["stderr"] > error_for(limit):
            logger.warning(
                f"The loss of {check['loss']:.3f} nats is known to ± {check['stderr'] or math.nan:.3f} only. More "
                "text that is not calibrated on would tell: give more, or lower nsamples."
            )
        judge_loss(check["loss"], refuse_above)
        return found[index]

    def _slice(self, configs, plans, batches):
        """Slices by every plan, and returns the models with their records."""
        results = compress(self._dense, plans, batches, self._config)
        for config, plan, result in zip(configs, plans, results, strict=True):
            record_run(self._dense, result.model, plan, config, batches, result.energy_kept, result.seconds)
        return [result.model for result in results]


def _require_texts(comparison: Check, limit: str, otherwise: str) -> None:
    """Checks that there is text on which a limit of the loss can be measured."""
    if not comparison.has_texts:
        raise ValueError(
            f"{limit}, but there is no text to measure it on: calibration data of tokens, or all of the text is "
            f"calibrated on. Give more text, lower nsamples, or {otherwise}."
        )
