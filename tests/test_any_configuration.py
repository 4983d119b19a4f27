"""Whatever the settings: a model is sliced as they say, or they are refused, and then it is what it was."""

import math

import tiny
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.configuration import (
    ARCHITECTURES,
    EMBEDDINGS,
    METRICS,
    ORIENTATIONS,
    ROTATIONS,
    SCHEDULES,
)
from optimum_slicegpt.validation import DTYPES


FAMILIES = ("llama", "gpt_neox", "gpt2", "opt", "mixtral", "phi3", "cohere", "gemma3_text")
DENSE = {
    (name, tied): tiny.build(name, torch.float32, tie_word_embeddings=tied)
    for name in FAMILIES
    for tied in (False, True)
}

share = st.floats(0, 0.95) | st.sampled_from((0.0, 0.25, 0.999, 1.0, -0.1, math.nan, math.inf, True, "half"))
count = st.integers(1, 64) | st.sampled_from((0, -3, 10**9, 1.5, True, "many"))


def choice(known):
    return st.sampled_from((*known, "none of these", None))


KNOWN = {
    "sparsity": share,
    "parameter_reduction": share,
    "mlp_sparsity": share,
    "widths": st.lists(st.integers(-1, 60), max_size=6) | st.integers(1, 48).map(lambda width: [width] * 5),
    "rotation": choice(ROTATIONS),
    "refit": st.booleans(),
    "metric": choice(METRICS),
    "schedule": choice(SCHEDULES),
    "architecture": choice(ARCHITECTURES),
    "round_to": st.none() | count,
    "round_neurons_to": st.none() | count,
    "slice_head": st.booleans(),
    "embeddings": choice(EMBEDDINGS),
    "orientation": choice(ORIENTATIONS),
    "batch_size": count,
    "seed": st.none() | st.integers(-2, 10),
    "dtype": st.sampled_from((None, *DTYPES, "int8", torch.bfloat16)),
    "offload_activations": st.booleans(),
}


@st.composite
def token_batches(draw):
    """Draws few or many tokens, all alike or not, padded or not."""
    shape = draw(st.sampled_from(((1, 1), (1, 2), (2, 24), (3, 60))))
    ids = tiny.tokens(*shape, seed=draw(st.integers(0, 5)))
    if draw(st.booleans()):
        ids = torch.full_like(ids, 5)
    batch = {"input_ids": ids}
    if draw(st.booleans()):
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][:, : draw(st.integers(0, shape[1]))] = 0
    return [batch] * draw(st.integers(1, 2))


def snapshot(model: PreTrainedModel):
    return type(model), model.config.to_dict(), {key: value.clone() for key, value in model.state_dict().items()}


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(DENSE)),
    given_settings=st.fixed_dictionaries({}, optional=KNOWN),
    batches=token_batches(),
)
@example(name=("llama", True), given_settings={"orientation": "random"}, batches=tiny.calibration())
@example(name=("llama", False), given_settings={"schedule": "energy"}, batches=tiny.calibration())
@example(name=("gpt2", True), given_settings={"architecture": "stock"}, batches=tiny.calibration())
@example(name=("gpt2", True), given_settings={"architecture": "stock", "sparsity": 0.3}, batches=tiny.calibration())
def test_it_works_or_is_refused(name, given_settings, batches):
    dense = DENSE[name]
    before = snapshot(dense)
    model = type(dense)(dense.config)
    model.load_state_dict(dense.state_dict())
    model.eval()
    try:
        config = SliceGPTConfig(dataset=batches, **given_settings)
        plan = SlicePlan.from_config(config, model.config)
        expected = plan.num_parameters(model)
        model.compress(config)
    except ValueError as error:
        # What is wrong, and what to do: no message of torch's or Python's own.
        assert len(str(error)) > 25 and str(error).endswith((".", ")", "'")), error
        kind, settings_before, weights = snapshot(model)
        assert (kind, settings_before) == before[:2]
        assert all(torch.equal(value, before[2][key]) for key, value in weights.items())
    else:
        assert model.num_parameters() == expected
        assert model.config.slicegpt["widths"] == list(plan.widths)
        is_stock = type(model).__module__.startswith("transformers.")
        assert is_stock == (plan.stock_size is not None)
        assert is_stock or config.architecture != "stock"
        assert not is_stock or config.architecture != "sliced"
        assert model(tiny.tokens()).logits.isfinite().all()


def test_the_models_above_can_all_be_sliced():
    for dense in DENSE.values():
        for architecture in ("auto", "sliced"):
            config = SliceGPTConfig(sparsity=0.25, architecture=architecture)
            assert SlicePlan.from_config(config, dense.config).widths
