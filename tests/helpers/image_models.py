"""Tiny random models of images and text around the text models of `tiny`, and inputs for them."""

from typing import NamedTuple

import torch
from shapes import HIDDEN, VOCAB
from tiny import ALL, tokens
from transformers import AutoConfig, AutoModelForImageTextToText


IMAGE = 1
"""The token in whose places features of images are put. `tiny.tokens` never draws it."""
ENCODER = {"hidden_size": 36, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
CLIP = ENCODER | {"model_type": "clip_vision_model", "image_size": 12, "patch_size": 4, "projection_dim": 16}
SIGLIP = ENCODER | {"image_size": 16, "patch_size": 4, "vision_use_head": False, "model_type": "siglip_vision_model"}
PIXTRAL = ENCODER | {"model_type": "pixtral", "image_size": 16, "patch_size": 4, "head_dim": 12}
INTERN = ENCODER | {"image_size": [16, 16], "patch_size": [4, 4]}
SAM = {"hidden_size": 36, "output_channels": 22, "num_hidden_layers": 1, "num_attention_heads": 3, "mlp_dim": 20}
SAM |= {"image_size": 64, "patch_size": 8, "window_size": 2, "global_attn_indexes": [0], "initializer_range": 0.02}
OVIS = ENCODER | {"image_size": 16, "patch_size": 4, "hidden_stride": 2}
OVIS |= {"vocab_size": 29, "num_visual_indicator_tokens": 5}
QWEN = {"hidden_size": 36, "intermediate_size": 20, "depth": 2, "num_heads": 3, "patch_size": 4}
QWEN |= {"out_hidden_size": HIDDEN, "num_position_embeddings": 16, "spatial_merge_size": 2}
DEEP = QWEN | {"deepstack_visual_indexes": [0, 1]}
"""Two levels of features join the stream: behind the first two of three layers, or behind the only two."""
QWEN2 = {"depth": 2, "embed_dim": 36, "hidden_size": HIDDEN, "num_heads": 3, "mlp_ratio": 1, "patch_size": 4}
QWEN2_5 = {"depth": 2, "hidden_size": 36, "out_hidden_size": HIDDEN, "num_heads": 3, "intermediate_size": 20}
QWEN2_5 |= {"patch_size": 4, "window_size": 8, "fullatt_block_indexes": [1]}
PERCEIVER = {
    "resampler_n_latents": 4,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 7,
    "num_key_value_heads": 1,
}


class Tiny(NamedTuple):
    """
    A tiny model.

    Args:
        text (`str`): name of its text model in `tiny`.
        config (`dict`): the other arguments of its configuration.
        num_tokens (`int`): the number of tokens that an image is.
        pixels (`tuple`): shape of what its image processor makes of an image.
        further (`dict`): what else that returns, for two images.
        marks (`str`, *optional*): the name of what says where images are.
    """

    text: str
    config: dict
    num_tokens: int = 4
    pixels: tuple = (3, 16, 16)
    further: dict = {}
    marks: str | None = None


TABLE = {"hidden_size": HIDDEN, "vocab_size": VOCAB}
SIZES = {"image_sizes": torch.tensor([[16, 16]] * 2)}
TILED = {"vision_config": CLIP, "vision_feature_layer": -1, "image_grid_pinpoints": [[12, 12]]}
TILES = {"image_sizes": torch.tensor([[12, 12]] * 2)}
GRID = {"image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
MERGED = {"spatial_merge_size": 2}
IMAGE_MODELS = {
    "llava": Tiny("llama", {"vision_config": CLIP, "vision_feature_layer": -1}, 9, (3, 12, 12)),
    "vipllava": Tiny("qwen3", {"vision_config": CLIP, "vision_feature_layers": [-1, -2]}, 9, (3, 12, 12)),
    "llava_next": Tiny("mistral", TILED, 21, (2, 3, 12, 12), TILES),
    "llava_onevision": Tiny("qwen2", TILED | {"vision_feature_select_strategy": "default"}, 21, (2, 3, 12, 12), TILES),
    "paligemma": Tiny("gemma2", {"vision_config": SIGLIP, "projection_dim": HIDDEN}, 16),
    "mistral3": Tiny("ministral3", {"vision_config": PIXTRAL, "vision_feature_layer": -1} | MERGED, further=SIZES),
    "lighton_ocr": Tiny("qwen3", {"vision_config": PIXTRAL} | MERGED, further=SIZES),
    "internvl": Tiny("qwen3_moe", {"vision_config": INTERN, "image_seq_length": 4}),
    "aya_vision": Tiny("cohere2", {"vision_config": SIGLIP, "downsample_factor": 2, "vision_feature_layer": -1}),
    "cohere2_vision": Tiny("cohere2", {"vision_config": SIGLIP, "downsample_factor": 2}),
    "lfm2_vl": Tiny(
        "lfm2",
        {"vision_config": ENCODER | {"model_type": "siglip2_vision_model", "patch_size": 4, "num_patches": 16}}
        | {"downsample_factor": 2, "projector_hidden_size": 26},
        pixels=(16, 48),
        further={"spatial_shapes": torch.tensor([[4, 4]] * 2), "pixel_attention_mask": torch.ones(2, 16).long()},
    ),
    "got_ocr2": Tiny("qwen2", {"vision_config": SAM, "image_seq_length": 4}, pixels=(3, 64, 64)),
    "ovis2": Tiny("qwen2", {"vision_config": OVIS, "visual_indicator_token_ids": [91, 92, 93, 94, 95]} | TABLE),
    "gemma3": Tiny("gemma3_text", {"vision_config": SIGLIP, "mm_tokens_per_image": 4}, marks="token_type_ids"),
    "aria": Tiny(
        "aria_text",
        {"vision_config": SIGLIP | {"model_type": "idefics3_vision"}, "projector_patch_to_query_dict": {16: 4}},
    ),
    "qwen3_5": Tiny("qwen3_5_text", {"vision_config": QWEN}, 4, (16, 96), GRID, "mm_token_type_ids"),
    "qwen3_5_moe": Tiny("qwen3_5_moe_text", {"vision_config": QWEN}, 4, (16, 96), GRID, "mm_token_type_ids"),
    "qwen2_vl": Tiny("qwen2_vl_text", {"vision_config": QWEN2}, 4, (16, 96), GRID, "mm_token_type_ids"),
    "qwen2_5_vl": Tiny("qwen2_5_vl_text", {"vision_config": QWEN2_5}, 4, (16, 96), GRID, "mm_token_type_ids"),
    "qwen3_vl": Tiny("qwen3_vl_text", {"vision_config": DEEP}, 4, (16, 96), GRID, "mm_token_type_ids"),
    "qwen3_vl_moe": Tiny("qwen3_vl_moe_text", {"vision_config": DEEP}, 4, (16, 96), GRID, "mm_token_type_ids"),
    "idefics2": Tiny(
        "mistral",
        {"vision_config": SIGLIP | {"model_type": "idefics2_vision"}, "perceiver_config": PERCEIVER},
        pixels=(1, 3, 16, 16),
    ),
    "idefics3": Tiny(
        "llama",
        {"vision_config": SIGLIP | {"model_type": "idefics3_vision"}, "scale_factor": 2},
        pixels=(1, 3, 16, 16),
    ),
    "smolvlm": Tiny(
        "llama", {"vision_config": SIGLIP | {"model_type": "smolvlm_vision"}, "scale_factor": 2}, pixels=(1, 3, 16, 16)
    ),
}
"""Tiny models of all types of `families.TOWERS`, by `model_type`."""


def build_whole(name: str, dtype=torch.float64, **text):
    """Builds a random model of images and text in evaluation mode, whose norms and biases are far from trivial."""
    tiny = IMAGE_MODELS[name]
    sizes = {"model_type": tiny.text} | ALL[tiny.text] | text
    marks = {"image_token_id": IMAGE, "tie_word_embeddings": sizes.get("tie_word_embeddings", False)}
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(name, text_config=sizes, **tiny.config | marks)
    )
    whole.model.set_experts_implementation("eager")  # The grouped matrix product knows no float64.
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 4
            if not parameter.any():  # Some projections start from nothing.
                parameter += 0.1 * torch.randn_like(parameter)
    return whole.to(dtype).eval()


def seen_and_read(name: str, dtype=torch.float64, seed=1, length=40):
    """Draws two texts with an image in each, as a processor returns them."""
    tiny, ids = IMAGE_MODELS[name], tokens(length=length, seed=seed)
    ids[:, 5 : 5 + tiny.num_tokens] = IMAGE
    torch.manual_seed(seed)
    pixels = torch.randn(2, *tiny.pixels, dtype=dtype)
    if "image_grid_thw" in tiny.further:  # With which the patches of all images are in one row.
        pixels = pixels.flatten(0, 1)
    marks = {tiny.marks: ids.eq(IMAGE).int()} if tiny.marks else {}
    return {"input_ids": ids, "pixel_values": pixels} | tiny.further | marks
