"""
Generates calibration text with the model itself: no data is needed, and nobody chooses a domain.

References: Liu et al., 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", section 3.1.
"""

from contextlib import contextmanager

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.utils import logging

from ..modeling.contexts import evaluating
from .batches import TokenBatches


GREEDY_TOKENS = 4
"""Number of tokens after the first that are the most probable ones: a random start becomes text (LLM-QAT)."""

SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""Settings of `generate` that draw tokens from the model's whole distribution."""

SEQUENCES_AT_ONCE = 32
"""Sequences that one call of `generate` writes: a token takes about as long for many sequences as for one."""


@torch.no_grad()
def generate_batches(
    model: PreTrainedModel, *, nsamples: int, seqlen: int, batch_size: int, seed: int | None = 0
) -> TokenBatches:
    """
    Generates text with a causal language model. Each sequence begins with a random token, continues with
    `GREEDY_TOKENS` most probable ones, and then with tokens drawn from the model's distribution. An end-of-text token
    does not end a sequence: another text begins behind it.

    Args:
        model (`PreTrainedModel`): a dense causal language model, on the device that generates.
        nsamples (`int`): number of sequences.
        seqlen (`int`): tokens per sequence.
        batch_size (`int`): sequences per batch of the result.
        seed (`int`, *optional*, defaults to 0):
            Seeds the draws. `None` is 0. The global random number generators are left as they were.

    Returns:
        [`TokenBatches`]: `input_ids` of shape `(batch_size, seqlen)`; the last batch may be smaller.
    """
    vocab_size, device = model.config.vocab_size, model.device
    devices = [device] if device.type == "cuda" else []
    greedy = min(GREEDY_TOKENS, seqlen - 1)
    sequences = []
    bar = logging.tqdm(total=nsamples * (seqlen - 1), desc="Writing", unit="token", disable=None)

    def count_tokens(ids, scores):
        bar.update(len(ids))
        return scores

    with torch.random.fork_rng(devices), evaluating(model), generation_settings_removed(model), bar:
        torch.manual_seed(seed or 0)
        for start in range(0, nsamples, SEQUENCES_AT_ONCE):
            ids = torch.randint(vocab_size, (min(SEQUENCES_AT_ONCE, nsamples - start), 1), device=device)
            for new, settings in ((greedy, {"do_sample": False}), (seqlen - 1 - greedy, SAMPLING)):
                if new:
                    ids = model.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=new,
                        eos_token_id=None,
                        logits_processor=LogitsProcessorList([count_tokens]),
                        **settings,
                    )
            sequences.append(ids.cpu())
    return TokenBatches([{"input_ids": part} for part in torch.cat(sequences).split(batch_size)], "self")


@contextmanager
def generation_settings_removed(model: PreTrainedModel):
    """Removes a model's generation settings, such as penalties or beams, during a computation."""
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
