"""Models of images and text keep what they see and say; their text towers become narrower."""

import copy

import numpy
import pytest
import torch
from image_models import CLIP, IMAGE, IMAGE_MODELS, build_whole, seen_and_read
from tiny import calibration, relative_error, tokens
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil, LlavaProcessor

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity
from optimum_slicegpt.modeling.families import TOWERS, deep_writers, family_of
from optimum_slicegpt.modeling.towers import text_tower


def test_every_type_has_a_tiny_model():
    assert IMAGE_MODELS.keys() == TOWERS.keys()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in IMAGE_MODELS), ("qwen3_vl", {"rotation": "per_block", "refit": False})],
)
def test_an_image_is_described_alike(name, settings, tmp_path):
    whole, inputs = build_whole(name), seen_and_read(name)
    expected = whole(**inputs).logits
    unlike = whole(**inputs | {"pixel_values": -inputs["pixel_values"]}).logits
    assert relative_error(unlike, expected) > 1e-3
    whole.compress(SliceGPTConfig(sparsity=0, dataset=[seen_and_read(name, seed=seed) for seed in (2, 3)], **settings))
    assert relative_error(whole(**inputs).logits, expected) < 1e-6
    whole.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, experts_implementation="eager")
    assert relative_error(loaded(**inputs).logits, whole(**inputs).logits) < 1e-6
    greedy = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE]}
    assert torch.equal(loaded.generate(**inputs, **greedy), whole.generate(**inputs, **greedy, use_cache=False))


def parameters(whole):
    """Counts all parameters but those that write to the stream behind layers, which become narrower besides."""
    base = whole.base_model
    deep = map(base.get_submodule, deep_writers(whole.config, base).values())
    return whole.num_parameters() - sum(each.numel() for module in deep for each in module.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "tied"),
    [("llava", True), ("llava", False), ("qwen2_vl", True), ("qwen2_5_vl", False), ("qwen3_vl", False)],
)
def test_a_tower_loses_what_its_text_model_alone_loses(name, tied):
    whole, texts = build_whole(name, tie_word_embeddings=tied), calibration()
    tower = text_tower(whole)
    alone = type(tower)(copy.deepcopy(tower.config)).double().eval()
    alone.load_state_dict(tower.state_dict())
    before = [parameters(whole), alone.num_parameters()]
    whole.compress(SliceGPTConfig(parameter_reduction=0.2, dataset=texts))
    alone.compress(SliceGPTConfig(parameter_reduction=0.2, dataset=texts, architecture="sliced", embeddings="tied"))
    assert before[0] - parameters(whole) == before[1] - alone.num_parameters() >= 0.2 * before[1]
    assert torch.equal(whole(tokens()).logits, alone(tokens()).logits)
    assert (whole.lm_head.weight is whole.get_input_embeddings().weight) == tied
    assert evaluate_perplexity(whole, texts).perplexity == evaluate_perplexity(alone, texts).perplexity


@torch.no_grad()
def test_images_are_calibrated_on():
    """What is in front of tokens as padding is not seen, and an image is: the model is then fitted to another text."""
    batches = [seen_and_read("llava", seed=seed) for seed in (2, 3)]
    padded = [
        batch
        | {"input_ids": torch.cat([torch.full((2, 3), 5), batch["input_ids"]], 1)}
        | {"attention_mask": torch.cat([torch.zeros(2, 3), torch.ones(2, 40)], 1).long()}
        | {"labels": batch["input_ids"]}
        for batch in batches
    ]
    other = [batch | {"pixel_values": -batch["pixel_values"]} for batch in batches]
    logits = []
    for dataset in (batches, padded, other):
        whole = build_whole("llava").train()
        whole.compress(SliceGPTConfig(sparsity=1 / 3, metric="fisher", dataset=dataset))
        assert whole.training and whole.model.language_model.training and whole.model.vision_tower.training
        logits.append(whole.eval()(**seen_and_read("llava")).logits)
    assert relative_error(logits[1], logits[0]) < 1e-6 < 1e-3 < relative_error(logits[2], logits[0])
    assert set(whole.config.text_config.slicegpt["widths"]) == {32}


@torch.no_grad()
def test_batches_of_a_processor(tmp_path, tiny_tokenizer):
    image_token = 90  # `tiny_tokenizer` has it as w90
    whole = build_whole("llava", torch.float32, vocab_size=98)
    whole.config.image_token_id = image_token
    whole.save_pretrained(tmp_path)
    size = {"height": CLIP["image_size"], "width": CLIP["image_size"]}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        tiny_tokenizer,
        patch_size=CLIP["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="w90 ",
    )
    image = numpy.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype="uint8")
    words = " ".join(f"w{token}" for token in tokens(1, 60)[0].tolist() if token != image_token)
    inputs = processor(images=image, text=f"w90 {words}", return_tensors="pt")
    config = SliceGPTConfig(sparsity=1 / 3, dataset=[inputs], tokenizer=tiny_tokenizer)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config)
    assert torch.equal(loaded(**inputs).logits, whole.compress(config)(**inputs).logits)
    assert inputs["input_ids"].eq(image_token).sum() == 9


@pytest.mark.parametrize("changes", [{"architecture": "stock"}, {"embeddings": "sliced"}])
def test_settings_of_a_narrow_table_are_refused(changes):
    (key,) = changes
    with pytest.raises(ValueError, match=f"{key}='.*', but this model's table keeps its width: features of images"):
        build_whole("llava").compress(SliceGPTConfig(sparsity=1 / 3, dataset=calibration(), **changes))


def test_refusals():
    whole = build_whole("llava", torch.float32)
    with pytest.raises(ValueError, match="model_type='llava': .* AutoModelForImageTextToText, and slice it in memory"):
        family_of(whole.config)
    with pytest.raises(ValueError, match="recover= fine-tunes language models, and a LlavaForConditionalGeneration"):
        whole.compress(SliceGPTConfig(sparsity=1 / 3, dataset=calibration()), recover=object())
    whole.compress(SliceGPTConfig(sparsity=1 / 3, dataset=calibration()))
    with pytest.raises(ValueError, match="This model is already sliced"):
        whole.compress(SliceGPTConfig(sparsity=1 / 3, dataset=calibration()))
