"""[`SliceGPTQuantizer`]: the object behind every way to slice a model."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from .configuration import SliceGPTConfig
from .data.calibration import calibration_batches
from .evaluation.check import Check
from .modeling.checks import check_dense, check_sliceable
from .modeling.contexts import evaluating, undisturbed
from .modeling.towers import WIDE_ENTRY, has_tower, text_tower
from .modeling.wholes import put_back
from .planning.settings import with_wide_entry
from .planning.widths import SlicePlan
from .record import record_run
from .slicing.compress import compress
from .slicing.skeleton import replace_in_place
from .slicing.twin import stock_twin
from .storage.files import saving


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
                processes were given different things; the model lost more than `refuse_above`.
        """
        if has_tower(model):
            check_dense(model.config.text_config)
            tower, quantizer = text_tower(model), SliceGPTQuantizer(with_wide_entry(self.config, WIDE_ENTRY))
            with evaluating(model):
                quantizer.quantize_model(tower, tokenizer, check=check, refuse_above=refuse_above)
            put_back(model, tower)
            return model
        check_sliceable(model)
        dense = stock_twin(model)
        plan = SlicePlan.from_config(self.config, dense.config)
        plan.check_rest(self.config, dense.config)
        batches = calibration_batches(dense, self.config, tokenizer)
        comparison = Check(dense, self.config, tokenizer) if check or refuse_above is not None else None
        result = compress(dense, plan, batches, self.config)
        record_run(dense, result.model, plan, self.config, batches, result.energy_kept, result.seconds)
        if comparison is not None:
            comparison.compare(result.model, refuse_above)
        return replace_in_place(model, result.model)

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
