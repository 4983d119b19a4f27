"""Calibration text that a model writes itself: no data is needed, and no domain is chosen."""

from contextlib import contextmanager

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.utils import logging

from .assembly import evaluating
from .calibration import TokenBatches


GREEDY_TOKENS = 4
"""Tokens after the first that are the most probable ones: a random start becomes text (LLM-QAT, section 3.1)."""

FREELY = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""From the whole distribution."""

SEQUENCES = 32
"""Written at a time: a token takes about as long for many sequences as for one."""


@torch.no_grad()
def sampled_batches(
    model: PreTrainedModel, *, nsamples: int, seqlen: int, batch_size: int, seed: int | None = 0
) -> TokenBatches:
    """
    Text sampled from a causal language model: a random token, a few greedy ones, and then what it draws.

    Args:
        model (`PreTrainedModel`): a dense causal language model, on the device that is to generate.
        nsamples (`int`): number of sequences.
        seqlen (`int`): tokens per sequence.
        batch_size (`int`): sequences per batch of the result.
        seed (`int`, *optional*): of the draws, which leave the global generators alone. `None` is 0.

    Returns:
        [`TokenBatches`]: `input_ids` of shape `(batch_size, seqlen)`; the last batch may be smaller.
    """
    vocab_size, device = model.config.vocab_size, model.device
    devices = [device] if device.type == "cuda" else []
    written = []
    bar = logging.tqdm(total=nsamples * (seqlen - 1), desc="Writing", unit="token", disable=None)

    def counted(ids, scores):
        bar.update(len(ids))
        return scores

    with torch.random.fork_rng(devices), evaluating(model), without_settings(model), bar:
        torch.manual_seed(seed or 0)
        for count in [SEQUENCES] * (nsamples // SEQUENCES) + [nsamples % SEQUENCES] * bool(nsamples % SEQUENCES):
            ids = torch.randint(vocab_size, (count, 1), device=device)
            greedy = min(GREEDY_TOKENS, seqlen - 1)
            for new, sampling in ((greedy, {"do_sample": False}), (seqlen - 1 - greedy, FREELY)):
                if new:
                    mask = torch.ones_like(ids)
                    # Past the end of a text another one begins.
                    ids = model.generate(
                        ids,
                        attention_mask=mask,
                        max_new_tokens=new,
                        eos_token_id=None,
                        logits_processor=LogitsProcessorList([counted]),
                        **sampling,
                    )
            written.append(ids.cpu())
    return TokenBatches([{"input_ids": part} for part in torch.cat(written).split(batch_size)], "self")


@contextmanager
def without_settings(model: PreTrainedModel):
    """For the time of a computation, a model has none of its own settings for generation: no penalties, no beams."""
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
