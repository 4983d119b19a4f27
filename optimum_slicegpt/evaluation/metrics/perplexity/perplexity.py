"""Measures the perplexity of texts under a causal language model, dense or sliced, as a metric of `evaluate`."""

from dataclasses import asdict

import datasets
import evaluate
from transformers import AutoModelForCausalLM

from optimum_slicegpt.data.batches import find_tokenizer
from optimum_slicegpt.evaluation.perplexity import evaluate_losses


DESCRIPTION = """
Measures how well a causal language model predicts texts: exp of the mean loss of their tokens, each text on its own.
Losses are in float32. Arguments, defaults and results are those of the perplexity metric on the Hub, and some more.
"""

INPUTS = """
Args:
    predictions (`list[str]`):
        The texts.
    model_id (`str` or `PreTrainedModel`):
        Name, path or object of the model.
    tokenizer (`str` or tokenizer, *optional*):
        By default the one at the model's name or path.
    batch_size (`int`, defaults to 16):
        Texts per forward.
    add_start_token (`bool`, defaults to `True`):
        Whether the tokenizer's first token comes before every text, so that the text's own first token is predicted.
    max_length (`int`, *optional*):
        Number of tokens, the start token among them, beyond which texts are cut. By default they are not.
    device (`str`, *optional*):
        Device that the model is moved to. By default it stays where it is.

Returns:
    `dict`: `perplexities` of each text and `mean_perplexity`, their mean; `perplexity` and `nll` over all tokens, with
    equal weight; `stderr` of `nll` over texts; `ntokens` that were predicted.

Raises:
    ValueError: a text has no token to predict; there is no start token or no tokenizer; token ids are outside the
        vocabulary.

Examples:
    >>> import evaluate
    >>> from optimum_slicegpt.evaluation.metrics import PERPLEXITY
    >>> perplexity = evaluate.load(PERPLEXITY)
    >>> perplexity.compute(predictions=["Slices of a loaf."], model_id="sliced")["mean_perplexity"]
"""


class Perplexity(evaluate.Metric):
    """The metric that `evaluate.load(PERPLEXITY)` returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://huggingface.co/docs/transformers/perplexity"],
        )

    def _compute(
        self,
        predictions,
        model_id,
        tokenizer=None,
        batch_size=16,
        add_start_token=True,
        max_length=None,
        device=None,
    ):
        model = AutoModelForCausalLM.from_pretrained(model_id) if isinstance(model_id, str) else model_id
        tokenizer = find_tokenizer(tokenizer or model.name_or_path)
        start = [tokenizer.bos_token_id] if add_start_token else []
        if None in start:
            raise ValueError("add_start_token=True, but the tokenizer has no bos_token; use add_start_token=False.")
        texts = [
            (start + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])[:max_length]
            for text in predictions
        ]
        for index, ids in enumerate(texts):
            if len(ids) < 2:
                raise ValueError(
                    f"predictions[{index}]={predictions[index]!r} leaves no token to predict with "
                    f"add_start_token={add_start_token} and max_length={max_length}; leave it out, or allow more."
                )
        losses = evaluate_losses(model, [{"input_ids": ids} for ids in texts], batch_size=batch_size, device=device)
        perplexities = (losses.sums / losses.counts).exp()
        each = {"perplexities": perplexities.tolist(), "mean_perplexity": perplexities.mean().item()}
        return each | asdict(losses.perplexity())
