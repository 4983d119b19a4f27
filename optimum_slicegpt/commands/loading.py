"""Loading and measuring, as several commands need it."""

from argparse import Namespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..data.batches import TokenBatches, limit_to_positions, load_batches
from ..evaluation.perplexity import Perplexity, evaluate_perplexity
from ..modeling.families import begin_tokens
from ..progress import announce
from ..storage.checkpoint import Checkpoint


def silence() -> None:
    """Keeps progress bars and warnings of this process off the console. The first of several processes prints them."""
    logging.disable_progress_bar()
    for library in ("transformers", "optimum_slicegpt"):
        logging.get_logger(library).setLevel(logging.ERROR)


def check_device(device: str | None) -> None:
    """Refuses a device that is not available, which would otherwise show only once the model is loaded."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} is not available here.") from error


def load_config_and_tokenizer(args: Namespace, tokenizer: str | None) -> tuple[PreTrainedConfig, Any]:
    """
    Loads the configuration of `args.model` and a tokenizer, and no weights.

    Raises:
        OSError, ValueError: one of them cannot be loaded.
    """
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    name = tokenizer or args.model
    try:
        return model_config, AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"No tokenizer could be loaded from {name!r}; give one with --tokenizer. {error}") from error


def load_model(args: Namespace, dtype: str, name: str | None = None) -> PreTrainedModel:
    """
    Loads a model after its files were checked: transformers would fill missing weights with random values. Files of
    quantized models hold other tensors than the model, and transformers alone checks them.

    Args:
        args (`Namespace`): names the model.
        dtype (`str`): to load it in; `"auto"` is the dtype of the checkpoint.
        name (`str`, *optional*): of another model.

    Raises:
        OSError, ValueError: [`Checkpoint`] refuses the files.
    """
    name = name or args.model
    config = AutoConfig.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    if getattr(config, "quantization_config", None) is None:
        Checkpoint(name, dtype, args.trust_remote_code)
    announce(f"Loading {name}")
    return AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, trust_remote_code=args.trust_remote_code, use_safetensors=True
    )


def configs_to_compare(args: Namespace, model_config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """
    Returns the configurations of the baseline, if there is one, and of the model.

    Raises:
        ValueError: their vocabularies differ, so that they cannot read the same tokens.
    """
    if args.baseline is None:
        return [model_config]
    baseline = AutoConfig.from_pretrained(args.baseline, trust_remote_code=args.trust_remote_code)
    if baseline.vocab_size != model_config.vocab_size:
        raise ValueError(
            f"--baseline has a vocabulary of {baseline.vocab_size:,} tokens and --model one of "
            f"{model_config.vocab_size:,}. Only models that read the same tokens can be compared."
        )
    return [baseline, model_config]


def load_test_batches(
    dataset, tokenizer, model_config, *, nsamples, seqlen, split="test", text_column=None, seed=None
) -> TokenBatches:
    return load_batches(
        dataset,
        tokenizer,
        split=split,
        text_column=text_column,
        nsamples=nsamples,
        seqlen=limit_to_positions(seqlen, model_config),
        seed=seed,
        begin=begin_tokens(model_config),
    )


def measure_perplexity(model: PreTrainedModel, batches: TokenBatches, device: str | None) -> Perplexity:
    return evaluate_perplexity(model, batches, device=device, progress=True)
