"""What the model card of a sliced model says."""

import pytest
import torch
from huggingface_hub import constants
from matplotlib.image import imread
from model_cards import OTHER, licence_of, publishable_model, recorded_model
from sliced_models import sliced_model
from tiny import build, calibration, paper, relative_error, tokens
from transformers import AutoModelForSequenceClassification

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.reports.figures import DPI, WIDTH_INCHES
from optimum_slicegpt.reports.hub import push_to_hub
from optimum_slicegpt.reports.model_card import TAGS, model_card, save_picture


OTHER_FEATURES = "The features that `AutoModel` returns are not those of the dense model:"

# The card


def test_card_has_the_facts():
    model = publishable_model(sparsity=0.5)
    record = model.config.slicegpt
    record["base_model"] = "org/base"
    record["perplexity"] = {"dataset": "wikitext2", "before": 12.345, "after": 23.456}
    card = model_card(model, repo_id="me/small", license="mit")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base",
        "license": "mit",
        "tags": list(TAGS),
    }
    before, after = record["parameters_before"], record["parameters_after"]
    for fact in (
        "# small\n",
        "[org/base](https://huggingface.co/org/base), made smaller with [SliceGPT]",
        f"The model shrank from {before:,} to {after:,} parameters: {1 - after / before:.1%} fewer.",
        "Perplexity on wikitext2: 12.35 before slicing, 23.46 after slicing.",
        '.from_pretrained("me/small")',
        '.from_pretrained("me/small", trust_remote_code=True)',
        "| Sparsity asked for | 50.0% of the hidden dimensions |",
        "| Hidden size before | 48 |",
        "| Width of the residual stream | 24 (4 sites), 48 (1 site) |",
        "| Orientation | pca |",
        f"| Calibration tokens | {record['calibration']['tokens']} |",
        f"% on average, {min(record['energy_kept']):.1%} at least |",
        "https://arxiv.org/abs/2401.15024",
        "@inproceedings{ashkboos2024slicegpt,\n  title = {{SliceGPT}: Compress",
    ):
        assert fact in card.text


@pytest.mark.parametrize("tied", [False, True])
def test_card_of_a_stock_result(tied):
    sizes = {"vocab_size": 98, "tie_word_embeddings": tied}
    model = sliced_model(sizes=sizes, rotation="shared", sparsity=1 / 3)
    card = model_card(model, repo_id="me/small")
    for fact in (
        "It is a `LlamaForCausalLM` like any other, only smaller, and needs no code of its own:",
        '\nmodel = AutoModelForCausalLM.from_pretrained("me/small")\n',
        "| Architecture | stock |",
        "| Hidden size before | 48 |",
        "| Width of the residual stream | 32 (5 sites) |",
        f"| Embeddings | {'narrow' if tied else 'sliced'} |",
    ):
        assert fact in card.text
    assert "trust_remote_code" not in card.text and "import optimum_slicegpt" not in card.text
    assert f"{OTHER_FEATURES} they are in another basis and fewer. What was computed with those" in card.text


@torch.no_grad()
@pytest.mark.parametrize(
    "tied, settings, reason",
    [
        (True, {"rotation": "shared"}, None),
        (False, {"rotation": "shared"}, "the head holds the gain of the final norm."),
        (False, {"embeddings": "tied"}, None),
        (True, {"embeddings": "sliced"}, "they are in another basis."),
    ],
)
def test_card_tells_where_features_are_others(tied, settings, reason):
    model = build("llama", tie_word_embeddings=tied)
    dense = model.base_model(tokens()).last_hidden_state
    model.compress(paper(sparsity=0, dataset=calibration(), **settings))
    same = relative_error(model.base_model(tokens()).last_hidden_state, dense) < 1e-6
    assert same == (reason is None) == (OTHER_FEATURES not in model_card(model).text)
    assert f"{OTHER_FEATURES} {reason or ''}" in model_card(model).text or same


def test_card_of_a_stock_result_with_another_head(tmp_path):
    sliced_model(rotation="shared").save_pretrained(tmp_path)
    card = model_card(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    assert card.data.pipeline_tag == "text-classification"
    assert "It is a `LlamaForSequenceClassification` like any other" in card.text
    assert "AutoModelForSequenceClassification.from_pretrained(" in card.text


def test_card_tells_of_a_recovery():
    done = {"source": "a|b.txt", "steps": 1234, "perplexity_before": 41.004, "perplexity_after": 25.061}
    settings = {"full": False, "lora_rank": 32, "learning_rate": 0.001, "distill": True}
    text = model_card(recorded_model(recovery=done | {"settings": settings})).text
    for fact in (
        "\nIt was fine-tuned after that: perplexity on held-out sequences went from 41.00 to 25.06.\n",
        "| Fine-tuned | with LoRA |",
        "| Rank of LoRA | 32 |",
        "| Fine-tuned on | a\\|b.txt |",
        "| Fine-tuned for | 1,234 steps |",
        "| Learning rate | 0.001 |",
        "| Learned from | the dense model |",
    ):
        assert fact in text
    text = model_card(recorded_model(recovery={"settings": {"full": True, "lora_rank": 32, "distill": False}})).text
    assert "\nIt was fine-tuned after that.\n" in text and "| Fine-tuned | all parameters |" in text
    assert "| Learned from | data alone |" in text and "Rank of LoRA" not in text
    assert "ine-tuned" not in model_card(recorded_model()).text


def test_the_picture_is_beside_the_card(tmp_path):
    model = publishable_model(sparsity=0.5)
    assert save_picture(model.config, tmp_path) == "slicegpt.png"
    assert imread(tmp_path / "slicegpt.png").shape[1] == round(WIDTH_INCHES * DPI)
    shown = "![Width of the residual stream and energy kept at every site](slicegpt.png)"
    assert shown in model_card(model, picture="slicegpt.png").text
    assert "![" not in model_card(model).text


def test_without_matplotlib_or_energies_there_is_no_picture(tmp_path, monkeypatch):
    assert save_picture(recorded_model(sparsity=0.5).config, tmp_path) is None
    monkeypatch.setattr("optimum_slicegpt.reports.model_card.is_matplotlib_available", lambda: False)
    assert save_picture(publishable_model(sparsity=0.5).config, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_card_does_not_mention_what_is_not_known():
    card = model_card(recorded_model())
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "A language model, made smaller" in card.text
    for absent in ("None", "nan", "parameters", "Perplexity", "Calibration", "Orientation", "\n\n\n"):
        assert absent not in card.text
    assert "| Width of the residual stream | 24 (4 sites), 48 (1 site) |" in card.text


@pytest.mark.parametrize(
    "record, sentence",
    [
        (
            {"parameters_before": 1000, "parameters_after": 1100},
            "The model grew from 1,000 to 1,100 parameters: 10.0%",
        ),
        ({"parameters_before": 1000, "parameters_after": 1000}, "The number of parameters stayed the same, 1,000."),
        ({"perplexity": {"after": 7}}, "Perplexity: 7.00 after slicing."),
        ({"calibration": {"source": "a|b.txt"}}, r"| Calibration data | a\|b.txt |"),
    ],
)
def test_what_else_the_card_says(record, sentence):
    assert sentence in model_card(recorded_model(**record)).text


def test_a_card_tells_of_training_only_where_there_was_some():
    texts = [model_card(recorded_model(refine=steps)).text for steps in (30, 0)]
    assert ["| Each MLP trained for | 30 steps |" in text for text in texts] == [True, False]


def test_widths_that_all_differ_are_a_range():
    assert (
        "| Width of the residual stream | 28 to 44 |"
        in model_card(publishable_model(widths=[44, 40, 36, 32, 28])).text
    )


def test_a_card_needs_a_sliced_model(tmp_path):
    for call in (model_card, lambda model: push_to_hub(model, "me/dense")):
        with pytest.raises(
            ValueError, match="LlamaForCausalLM is not sliced: .* has no 'slicegpt'; slice the model first"
        ):
            call(build("llama"))


# Its licence


@pytest.mark.parametrize(
    "metadata, fields",
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        (
            OTHER.format(link="https://example.org/license"),
            {"license": "other", "license_name": "llama3", "license_link": "https://example.org/license"},
        ),
        (OTHER.format(link="LICENSE"), {"license": "other", "license_name": "llama3"}),
        ("language: en", {}),
        ("license: [", {}),
        ("- no mapping", {}),
    ],
)
def test_licence_of_a_base_in_a_folder(metadata, fields, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Base\n")
    model = recorded_model(base_model=str(tmp_path))
    model.name_or_path = str(tmp_path)
    assert licence_of(model_card(model)) == fields


@pytest.mark.parametrize("link", ["LICENSE", None])
def test_licence_of_a_base_in_the_cache_of_the_hub(link, tmp_path, monkeypatch):
    cached = tmp_path / "models--org--base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abcd")
    (cached / "snapshots" / "0123abcd").mkdir(parents=True)
    metadata = OTHER.format(link=link) if link else "license: mit"
    (cached / "snapshots" / "0123abcd" / "README.md").write_text(f"---\n{metadata}\n---\n# Base\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = licence_of(model_card(recorded_model(base_model="org/base")))
    assert found["license"] == ("other" if link else "mit")
    assert found.get("license_link") == ("https://huggingface.co/org/base/blob/main/LICENSE" if link else None)


def test_a_licence_that_is_given_is_taken(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    model = recorded_model()
    model.name_or_path = str(tmp_path)
    assert licence_of(model_card(model, license="apache-2.0")) == {"license": "apache-2.0"}


def test_a_readme_that_happens_to_lie_here_is_not_the_base_models(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path)
    assert licence_of(model_card(recorded_model())) == {}


def test_a_card_says_whether_the_stream_is_narrower():
    config = SliceGPTConfig(sparsity=0, mlp_sparsity=0.4, dataset=calibration())
    text = model_card(build("llama", torch.float32).compress(config)).text
    assert "keeps its width" in text and "was rotated" not in text
    text = model_card(build("llama", torch.float32).compress(SliceGPTConfig(sparsity=0.3, dataset=calibration()))).text
    assert "was rotated" in text and "keeps its width" not in text
