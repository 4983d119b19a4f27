"""[`SliceGPTQuantizer`]: the object behind every way to slice a model."""

import os
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from .assembly import become, sliced_class_of
from .calibration import TokenBatches, is_own_text, load_batches, mixed, sources_of, within_positions
from .compress import compress
from .configuration import SliceGPTConfig
from .export import export_obstacle
from .model_card import public_name
from .sampling import sampled_batches
from .sizes import parameters_by_part
from .walk import SlicedResult
from .widths import SlicePlan


logger = logging.get_logger(__name__)


class SliceGPTQuantizer:
    """
    Slices causal language models; shaped like `optimum.gptq.GPTQQuantizer`.

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

    def quantize_model(self, model: PreTrainedModel, tokenizer: Any = None) -> PreTrainedModel:
        """
        Slices a model in place: the object becomes an instance of its family's sliced class.

        Everything that can be refused is refused before anything changes. Several processes that each call this, with
        the same arguments, share out the calibration batches, and each gets the result. Like a model that was loaded,
        it has no gradient checkpointing enabled and no parameters frozen, whatever the dense one had.

        Args:
            model (`PreTrainedModel`): a dense causal language model of a supported family.
            tokenizer (`str` or tokenizer, *optional*):
                For calibration data that is text. By default `config.tokenizer`, then `model.name_or_path`.

        Returns:
            `PreTrainedModel`: `model` itself.

        Raises:
            ConnectionError: another process has failed.
            ValueError: the model, the widths or the calibration data cannot be used; activations are not finite;
                processes were given different things.
        """
        plan, batches = self.prepare(model, tokenizer)
        result = compress(model, plan, batches.batches, self.config)
        self.conclude(model, plan, batches, result)
        return become(model, result.model)

    def prepare(self, model: PreTrainedModel, tokenizer: Any = None) -> tuple[SlicePlan, TokenBatches]:
        """What [`compress`] wants to know. Raises what [`SliceGPTQuantizer.quantize_model`] does before it starts."""
        check_sliceable(model)
        plan = SlicePlan.from_config(self.config, model.config)
        return plan, self.calibration_batches(model, tokenizer)

    def conclude(self, model: PreTrainedModel, plan: SlicePlan, batches: TokenBatches, result: SlicedResult) -> None:
        """Notes on the sliced model how it was made of the dense one, and warns if it grew."""
        sliced, parameters = result.model, model.num_parameters()
        sliced.config.slicegpt = self._record(model, plan, batches, result)
        if not plan.shortcuts:
            logger.info(export_obstacle(sliced) or "A stock class can hold this model; see export_stock.")
        if sliced.num_parameters() > parameters:
            logger.warning(
                f"The model grew from {parameters:,} to {sliced.num_parameters():,} parameters: what slicing to "
                f"widths of {min(plan.widths)} removes is less than shortcuts and projections add. Raise sparsity."
            )

    def calibration_batches(self, model: PreTrainedModel, tokenizer: Any = None) -> TokenBatches:
        """
        What `quantize_model` calibrates on; its arguments are the same. Warns of fewer tokens than dimensions.

        Raises:
            ValueError: the calibration data cannot be used.
        """
        batches = self._batches(model, tokenizer)
        if batches.ntokens < model.config.hidden_size:
            logger.warning(
                f"{batches.ntokens} calibration tokens for a hidden size of {model.config.hidden_size}: fewer tokens "
                "than dimensions leave axes undetermined. Raise nsamples or seqlen."
            )
        return batches

    def _batches(self, model, tokenizer) -> TokenBatches:
        config = self.config
        sources = sources_of(config.dataset)
        if config.nsamples < len(sources):
            raise ValueError(f"nsamples={config.nsamples} is less than the number of datasets to mix, {len(sources)}.")
        parts = {}
        for first, source in sorted(enumerate(sources), key=lambda each: is_own_text(each[1])):  # which takes longest
            nsamples = len(range(first, config.nsamples, len(sources)))
            parts[first] = self._batches_of(source, nsamples, model, tokenizer)
        return parts[0] if len(parts) == 1 else mixed([parts[first] for first in sorted(parts)], config.batch_size)

    def _batches_of(self, source, nsamples, model, tokenizer) -> TokenBatches:
        config = self.config
        sizes = {
            "nsamples": nsamples,
            "seqlen": within_positions(config.seqlen, model.config),
            "batch_size": config.batch_size,
            "seed": config.seed,
        }
        if is_own_text(source):
            return sampled_batches(model, **sizes)
        return load_batches(
            source,
            tokenizer or config.tokenizer or model.name_or_path,
            text_column=config.text_column,
            vocab_size=model.config.vocab_size,
            **sizes,
        )

    def _record(self, model, plan, batches: TokenBatches, result: SlicedResult) -> dict[str, Any]:
        """How the model was made, for `config.slicegpt`."""
        settings, parts = self.config.to_dict(), parameters_by_part(model)
        made_with = ("sparsity", "parameter_reduction", "mlp_sparsity", "schedule", "rotation", "refit", "metric")
        made_with += ("round_to", "slice_head", "orientation", "seed", "dtype")
        return {
            "base_model": public_name(model.name_or_path),
            **{key: settings[key] for key in made_with},
            "embeddings": "tied" if plan.tied else "sliced",
            "inner": plan.inner,
            "calibration": {"source": batches.source, "tokens": batches.ntokens},
            "parameters_before": sum(parts.values()),
            "parameters_after": result.model.num_parameters(),
            "parameters_by_part": {"before": parts, "after": parameters_by_part(result.model)},
            "energy_kept": [round(share, 6) for share in result.energy_kept],
            "seconds": {phase: round(seconds, 2) for phase, seconds in result.seconds.items()},
        }

    def save(self, model: PreTrainedModel, save_dir: str | os.PathLike, **kwargs) -> None:
        """Writes an ordinary checkpoint: `model.save_pretrained(save_dir, **kwargs)`."""
        model.save_pretrained(save_dir, **kwargs)

    @staticmethod
    def load(save_dir: str | os.PathLike, **kwargs) -> PreTrainedModel:
        """Reads a sliced checkpoint: `AutoModelForCausalLM.from_pretrained(save_dir, **kwargs)`."""
        return AutoModelForCausalLM.from_pretrained(save_dir, **kwargs)


def check_sliceable(model: PreTrainedModel) -> None:
    """
    Refuses what cannot be sliced.

    Raises:
        ValueError: the model is already sliced, quantized, carries adapters or offload hooks, is of an unsupported
            family, or is no causal language model.
    """
    if model.config.model_type.startswith("sliced_"):
        raise ValueError("This model is already sliced; slice the dense model with the sparsity you want.")
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise ValueError("This model is quantized; slice the full-precision model first and quantize the result.")
    if any(hasattr(module, "base_layer") or hasattr(module, "peft_config") for module in model.modules()):
        raise ValueError("This model carries PEFT adapters; call merge_and_unload() first, then slice.")
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ValueError(
            "This model is dispatched by accelerate (device_map, offloading); load it on one device, or on the CPU "
            "with SliceGPTConfig(device='cuda'), which slices layer by layer on the GPU."
        )
    sliced_class_of(model)
