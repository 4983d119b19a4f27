"""What commands load and measure."""

import sys
from argparse import Namespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from ..calibration import TokenBatches, load_batches, within_positions
from ..checkpoint import Checkpoint
from ..evaluation import Perplexity, evaluate_perplexity


def silence() -> None:
    """Of several processes, the first one alone speaks; the others tell only of errors."""
    logging.disable_progress_bar()
    for library in ("transformers", "optimum_slicegpt"):
        logging.get_logger(library).setLevel(logging.ERROR)


def check_device(device: str | None) -> None:
    """Refuses what would fail only once the model is loaded."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} is not available here.") from error


def load_config_and_tokenizer(args: Namespace, tokenizer: str | None):
    """What tells, without reading weights, whether the rest can work."""
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    name = tokenizer or args.model
    try:
        return model_config, AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"No tokenizer could be loaded from {name!r}; give one with --tokenizer. {error}") from error


def load_model(args: Namespace, dtype: str, name: str | None = None) -> PreTrainedModel:
    """
    Loads `args.model`, or another that is named, if its files are all that they should be: otherwise, what is missing
    would be random. Files of quantized models hold other tensors than the model, and are left to transformers.

    Raises:
        OSError, ValueError: as [`Checkpoint`].
    """
    name = name or args.model
    config = AutoConfig.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    if getattr(config, "quantization_config", None) is None:
        Checkpoint(name, dtype, args.trust_remote_code)
    return AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, trust_remote_code=args.trust_remote_code, use_safetensors=True
    )


def compared_configs(args: Namespace, model_config) -> list:
    """
    Configurations of what is compared: of the baseline, if there is one, and of the model.

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
        seqlen=within_positions(seqlen, model_config),
        seed=seed,
    )


def measure(model: PreTrainedModel, batches: TokenBatches, device: str | None) -> Perplexity:
    home = model.device
    found = evaluate_perplexity(model, batches, device=device, progress=sys.stderr.isatty())
    model.to(home)  # slicing on a device wants one layer at a time there, not the model
    return found
