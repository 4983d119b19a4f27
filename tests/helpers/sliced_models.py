"""Sliced tiny models, in the forms that several test files need."""

import torch
from tiny import build, calibration, differing_widths, paper
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.slicing.skeleton import build_sliced


def sliced_model(name="llama", dtype=torch.float32, *, sizes=None, **settings):
    """
    Slices a tiny model by the paper's method, all sites alike unless `settings` say otherwise.

    Args:
        name (`str`): of the tiny model.
        dtype (`torch.dtype`): of its weights.
        sizes (`dict`, *optional*): changes of its configuration.
        settings: of the [`SliceGPTConfig`], in which `sparsity` is 0.3 if neither it nor `widths` is given.
    """
    size = {} if "widths" in settings else {"sparsity": 0.3}
    return build(name, dtype, **sizes or {}).compress(paper(**size | settings, dataset=calibration()))


def stock_model(name="llama", dtype=torch.float32, *, sizes=None, **settings):
    """
    Slices a tiny model with a tied head by the default method, to a stock class.

    Args:
        name (`str`): of the tiny model.
        dtype (`torch.dtype`): of its weights.
        sizes (`dict`, *optional*): changes of its configuration.
        settings: of the [`SliceGPTConfig`], by which a quarter of the dimensions and of the neurons go.
    """
    size = {"sparsity": 0.25, "mlp_sparsity": 0.25}
    settings = {"architecture": "stock", "dataset": calibration()} | size | settings
    return build(name, dtype, **{"tie_word_embeddings": True} | (sizes or {})).compress(SliceGPTConfig(**settings))


def tapering_model(name, dtype=torch.float32):
    """Slices a tiny model to widths that differ from site to site."""
    dense = build(name, dtype)
    return dense.compress(paper(widths=differing_widths(dense.config), dataset=calibration()))


def model_of_kind(kind, dtype=torch.float32):
    """Slices a model of a family, or a llama whose head is tied to its embeddings, to widths that differ."""
    if kind == "mixtral":  # compilers want experts in one product, which takes widths in multiples of 8
        config = paper(widths=[40, 32, 32, 24, 24], dataset=calibration())
        return build(kind, dtype).compress(config)
    if kind != "tied":
        return tapering_model(kind, dtype)
    config = paper(widths=[44, 40, 36, 32, 28], dataset=calibration(), embeddings="tied")
    return build("llama", dtype, tie_word_embeddings=True).compress(config)


def plan_of_one_width(name, width, dtype=torch.float64, overrides=None, **changes):
    """Builds a dense model, and a plan to slice it in one shared basis."""
    dense = build(name, dtype, **{"tie_word_embeddings": False} | (overrides or {}))
    family = family_of(dense.config)
    widths = (width,) * family.num_sites(dense.config)
    # Where experts have the neurons, they are left alone.
    return dense, SlicePlan(
        48, widths, **{"shortcuts": False, "neurons": None if family.keeps_neurons else 24} | changes
    )


def model_of_one_width(name, width, dtype=torch.float64, overrides=None, **changes):
    """Builds a sliced model with random weights, far from trivial: its output is the export's only standard."""
    dense, plan = plan_of_one_width(name, width, dtype, overrides, **changes)
    config = build_sliced(dense, plan).config
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, experts_implementation=dense.config._experts_implementation)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            per_head = any(norm in key for norm in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"))
            if key.endswith("bias") or per_head:
                parameter += 0.3 * torch.randn_like(parameter)
            elif parameter.ndim > 1:
                parameter *= 8
    return model.to(dtype).eval()
