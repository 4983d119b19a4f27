"""Loads what a recovery trains on: text of the dense model, the data of its user, or both."""

from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from ..data.batches import find_tokenizer, limit_to_positions, load_batches
from ..data.generated import own_text
from ..data.texts import OWN_TEXT, is_generated
from ..modeling.families import begin_tokens
from .configuration import RecoveryConfig
from .packing import PackedSequences, hold_out, join_kinds, load_sequences


def load_mixture(
    config: RecoveryConfig,
    tokenizer: Any,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    processes: PartialState,
) -> PackedSequences:
    """
    Loads the sequences of a recovery. Text that the dense model wrote for a calibration is used again. What is missing
    is written last: that takes longest.

    Args:
        config ([`RecoveryConfig`]): names the data, and its size.
        tokenizer (`PreTrainedTokenizerBase` or `str`): the object, its name or its path.
        student (`PreTrainedModel`): the sliced model.
        teacher (`PreTrainedModel`, *optional*): the dense model, which writes text.
        processes (`PartialState`): the processes of the run, all of which call this.

    Returns:
        [`PackedSequences`]: the same ones for the same arguments.

    Raises:
        ConnectionError, FileNotFoundError: the data is not there.
        ValueError: there is no tokenizer; the data cannot be used, see [`load_sequences`]; the vocabulary lacks a
            token.
    """
    tokenizer = find_tokenizer(tokenizer)
    seqlen = limit_to_positions(config.seqlen, student.config)
    own = count_own_sequences(config, seqlen)
    both = 0 < own < config.nsamples
    held_out = max(config.held_out // 2, 1) if both and isinstance(config.held_out, int) else config.held_out
    parts = []
    if own < config.nsamples:
        with processes.main_process_first():  # One process downloads, the others find the files in its cache.
            other = load_sequences(
                config.dataset,
                tokenizer,
                nsamples=config.nsamples - own,
                seqlen=seqlen,
                held_out=held_out,
                seed=config.seed,
                text_column=config.text_column,
                mask_prompts=config.mask_prompts and not config.distill,
                begin=begin_tokens(student.config),
            )
        # This checks the token ids.
        load_batches(other.train + other.held_out, vocab_size=student.config.vocab_size)
        parts.append(other)
    if own:
        settings = {"length": seqlen, "seed": config.seed, "device": str(processes.device)}
        rows = own_text(teacher, tokenizer, tokens=own * seqlen, **settings)
        parts.append(hold_out([{"input_ids": ids, "labels": ids} for ids in rows], held_out, seqlen, OWN_TEXT))
    return join_kinds(parts)


def count_own_sequences(config: RecoveryConfig, seqlen: int) -> int:
    """Counts the sequences that the dense model writes."""
    if not config.distill:
        return 0
    if is_generated(config.dataset):
        return config.nsamples
    if config.own_tokens is None:
        return config.nsamples // 2
    return min(round(config.own_tokens / seqlen), config.nsamples)
