"""[`SliceGPTQuantizer`]: the object behind every way to slice a model."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from .configuration import SliceGPTConfig
from .data.calibration import calibration_batches
from .evaluation.check import Check
from .modeling.checks import check_sliceable
from .modeling.contexts import undisturbed
from .planning.widths import SlicePlan
from .record import record_run
from .slicing.compress import compress
from .slicing.skeleton import replace_in_place, take_mode
from .slicing.twin import stock_twin


class SliceGPTQuantizer:
    """
    The object that slices causal language models; shaped like `optimum.gptq.GPTQQuantizer`.

    Args:
        config ([`SliceGPTConfig`]): how to slice.
    """

    def __init__(self, config: SliceGPTConfig):
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

        All checks run before anything changes. Several processes that each call this, with the same arguments, share
        out the calibration batches, and each gets the result. Like a model that was loaded, the result has no gradient
        checkpointing enabled and no parameters frozen, whatever the dense model had.

        Args:
            model (`PreTrainedModel`): a dense causal language model of a supported family.
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
                processes were given different things; the model lost more than `refuse_above`.
        """
        slicing = _Slicing(model, [self.config], tokenizer, check or refuse_above is not None)
        (sliced,) = slicing.run(refuse_above)
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
        found = _Slicing(model, configs, tokenizer, check).run()
        return [take_mode(model, sliced) for sliced in found]

    def save(self, model: PreTrainedModel, save_dir: str | os.PathLike, **kwargs) -> None:
        """Writes an ordinary checkpoint: `model.save_pretrained(save_dir, **kwargs)`."""
        model.save_pretrained(save_dir, **kwargs)

    @staticmethod
    def load(save_dir: str | os.PathLike, **kwargs) -> PreTrainedModel:
        """Reads a sliced checkpoint: `AutoModelForCausalLM.from_pretrained(save_dir, **kwargs)`."""
        return AutoModelForCausalLM.from_pretrained(save_dir, **kwargs)


class _Slicing:
    """
    A dense model that is to be sliced, with its calibration data and, if results are compared with it, its losses.

    Args:
        model (`PreTrainedModel`), tokenizer: see [`SliceGPTQuantizer.quantize_model`].
        configs (`list[SliceGPTConfig]`): one for every size, and alike but for that.
        check (`bool`): whether results are compared.
    """

    def __init__(self, model, configs, tokenizer, check):
        check_sliceable(model)
        self._dense, self._configs = stock_twin(model), configs
        self._plans = [SlicePlan.from_config(config, self._dense.config) for config in configs]
        for plan, config in zip(self._plans, configs, strict=True):
            plan.check_rest(config, self._dense.config)
        self._batches = calibration_batches(self._dense, configs[0], tokenizer)
        self._check = Check(self._dense, configs[0], tokenizer) if check else None

    def run(self, refuse_above: float | None = None) -> list[PreTrainedModel]:
        """Slices to every size, and returns the models with their records."""
        results = compress(self._dense, self._plans, self._batches, self._configs[0])
        for plan, config, result in zip(self._plans, self._configs, results, strict=True):
            record_run(self._dense, result.model, plan, config, self._batches, result.energy_kept, result.seconds)
            if self._check is not None:
                self._check.compare(result.model, refuse_above)
        return [result.model for result in results]
