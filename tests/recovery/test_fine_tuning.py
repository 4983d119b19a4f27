"""`recover`: what is trained, what is left as it was, and what a teacher changes."""

import math
import random

import pytest
import torch
from peft import PeftModel, get_peft_model
from recovering import (
    TEXTS,
    changed_names,
    copy_weights,
    fresh_model,
    fresh_stock_model,
    quick_config,
    same_weights,
)
from tiny import TINY, build, calibration, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, recover
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.recovery.adapters import lora_config
from optimum_slicegpt.recovery.packing import load_sequences
from optimum_slicegpt.recovery.trainer import RecoveryTrainer


def table_weights(model):
    """Returns the names, in the state dict, of all readers and writers in layers."""
    decoder = Decoder(model)
    return {
        f"{decoder.layer_name(block.index)}.{name}" + ".weight" * (weight.key == "weight")
        for block in decoder.blocks()
        for name, weight in (block.readers() | block.writers()).items()
    }


# What is trained


@pytest.mark.parametrize("config", [quick_config(), quick_config(full=True)], ids=["lora", "full"])
def test_recovery_lowers_the_loss_on_what_is_held_out(config, tiny_tokenizer):
    model = fresh_model()
    sequences = load_sequences(TEXTS, tiny_tokenizer, nsamples=1000, seqlen=16, held_out=4)
    before = evaluate_perplexity(model, sequences.held_out).perplexity
    assert recover(model, tiny_tokenizer, config) is model
    after = evaluate_perplexity(model, sequences.held_out).perplexity
    assert after < 0.8 * before
    record = model.config.slicegpt["recovery"]
    assert record["perplexity_before"] == pytest.approx(before, rel=1e-5)
    assert record["perplexity_after"] == pytest.approx(after, rel=1e-5)
    losses = {when: math.log(perplexity) for when, perplexity in (("before", before), ("after", after))}
    assert record["held_out_losses"] == {when: {"texts": pytest.approx(loss)} for when, loss in losses.items()}
    assert record["adapter_scale"] == (None if config.full else 1)
    assert (record["steps"], record["source"]) == (6, "texts")
    assert (record["sequences"], record["held_out_sequences"]) == (len(sequences.train), 4)
    assert record["tokens"] == 16 * len(sequences.train)
    assert record["settings"]["learning_rate"] == 1e-2 and "dataset" not in record["settings"]
    assert record["seconds"] > 0


@pytest.mark.parametrize("name", TINY)
def test_adapters_go_onto_everything_in_the_table_and_nothing_else(name):
    model = fresh_model(name)
    before, expected = copy_weights(model), table_weights(model)
    adapted = get_peft_model(model, lora_config(model, quick_config()))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    adapted.merge_and_unload()
    assert changed_names(model, before) == expected


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt2", "gpt_neox", "falcon"])
def test_families_whose_weights_are_no_linear_layers_recover(name, tiny_tokenizer, caplog):
    model = fresh_model(name)
    before, expected = copy_weights(model), table_weights(model)
    recover(model, tiny_tokenizer, quick_config(max_steps=4, lora_dropout=0.05))
    assert changed_names(model, before) == expected
    record = model.config.slicegpt["recovery"]
    assert record["perplexity_after"] < 0.98 * record["perplexity_before"]
    experts = family_of(model.config).moe
    assert record["settings"]["lora_dropout"] == (0 if experts else 0.05)
    assert ("lora_dropout=0.05 is left out: PEFT trains mlp.gate.weight, mlp.experts" in caplog.text) == experts


def test_a_mixture_of_experts_that_reports_its_routing(tiny_tokenizer):
    model = fresh_model("mixtral")
    model.config.output_router_logits = model.config.output_hidden_states = True
    recover(model, tiny_tokenizer, quick_config(lora_dropout=0))
    found = model.config.slicegpt["recovery"]
    assert found["perplexity_after"] < found["perplexity_before"]
    assert model.config.output_router_logits


def test_shortcuts_by_choice(tiny_tokenizer):
    model = fresh_model()
    before, expected = copy_weights(model), table_weights(model)
    recover(model, tiny_tokenizer, quick_config(max_steps=2, shortcuts=True))
    added = {name for name in before if "shortcut" in name}
    assert len(added) == 4 and changed_names(model, before) == expected | added


def test_projections_around_a_tied_table_by_choice(tiny_tokenizer):
    dense = build("llama", torch.float32, vocab_size=98, tie_word_embeddings=True)
    model = dense.compress(SliceGPTConfig(sparsity=0.3, embeddings="tied", dataset=calibration()))
    before, expected = copy_weights(model), table_weights(model)
    recover(model, tiny_tokenizer, quick_config(max_steps=2, shortcuts=True))
    added = {"model.layers.0.embedding_projection.weight", "model.norm.projection.weight"}
    assert changed_names(model, before) == expected | added


def test_full_trains_everything(tiny_tokenizer):
    model = fresh_model()
    before = copy_weights(model)
    recover(model, tiny_tokenizer, quick_config(full=True))
    assert changed_names(model, before) == before.keys()


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_stock_model_stays_one_and_keeps_its_tie(full, tiny_tokenizer, tmp_path):
    model = fresh_stock_model()
    before = copy_weights(model)
    recover(model, tiny_tokenizer, quick_config(full=full))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert changed_names(model, before) == (before.keys() if full else table_weights(model))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same_weights(loaded, model) and loaded.lm_head.weight is loaded.model.embed_tokens.weight
    record = loaded.config.slicegpt
    assert record["architecture"] == "stock" and record["embeddings"] == "narrow"
    assert record["recovery"]["perplexity_after"] < record["recovery"]["perplexity_before"]


def test_merged_is_the_adapter_kept_apart(tiny_tokenizer, tmp_path):
    merged, apart = fresh_model(), fresh_model()
    before = copy_weights(merged)
    recover(merged, tiny_tokenizer, quick_config())
    adapted = recover(apart, tiny_tokenizer, quick_config(keep_adapter=True))
    assert isinstance(adapted, PeftModel) and adapted.get_base_model() is apart
    base = {name.replace(".base_layer", ""): value for name, value in apart.state_dict().items() if "lora" not in name}
    assert base.keys() == before.keys() and all(torch.equal(base[name], before[name]) for name in base)
    trained = {
        name.rpartition("lora_")[1] for name, parameter in adapted.named_parameters() if parameter.requires_grad
    }
    assert trained == {"lora_"}
    assert relative_error(merged(tokens()).logits, adapted(tokens()).logits) < 1e-5

    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(fresh_model(), tmp_path)
    assert torch.equal(reloaded(tokens()).logits, adapted(tokens()).logits)


def test_what_is_held_out_is_not_trained_on(tiny_tokenizer, monkeypatch):
    seen, step = [], RecoveryTrainer.training_step

    def noting(self, model, inputs, *args):
        seen.extend(map(tuple, inputs["input_ids"].tolist()))
        return step(self, model, inputs, *args)

    texts = [" ".join(f"w{token - 3}" for token in row) for row in tokens(8, 64).tolist()]  # no two sequences alike
    monkeypatch.setattr(RecoveryTrainer, "training_step", noting)
    recover(fresh_model(), tiny_tokenizer, quick_config(dataset=texts, max_steps=None, epochs=2))
    sequences = load_sequences(texts, tiny_tokenizer, nsamples=1000, seqlen=16, held_out=4)
    train, held_out = (
        [tuple(sequence["input_ids"].tolist()) for sequence in part] for part in (sequences.train, sequences.held_out)
    )
    assert set(seen) == set(train) and len(seen) == 2 * len(train)
    assert len(held_out) == 4 and set(seen).isdisjoint(held_out)


def test_conversations_are_trained_on_their_answers(tiny_tokenizer):
    chat = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer, unk_token="<unk>")
    chat.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    rows = [{"instruction": f"w{index} w5 w6", "output": "w7 w8 w9"} for index in range(90)]
    model = fresh_model()
    recover(model, chat, quick_config(dataset=rows))
    record = model.config.slicegpt["recovery"]
    assert record["source"] == "conversations"
    assert record["perplexity_after"] < 0.5 * record["perplexity_before"]


def test_nothing_but_the_weights_is_different_afterwards(tiny_tokenizer):
    model = fresh_model()
    model.config.use_cache = True
    states = torch.random.get_rng_state(), random.getstate()
    for config in (quick_config(max_steps=2), quick_config(max_steps=2, full=True, bf16=True)):
        recover(model, tiny_tokenizer, config)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.config.use_cache and not model.training
        assert "forward" not in vars(model) and not hasattr(model, "_original_forward")
        assert not any(hasattr(module, "base_layer") for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), states[0]) and random.getstate() == states[1]


def test_a_recovered_model_is_saved_with_its_record(tiny_tokenizer, tmp_path):
    model = recover(fresh_model(), tiny_tokenizer, quick_config(max_steps=2))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and same_weights(loaded, model)
    assert loaded.config.slicegpt == model.config.slicegpt
    assert loaded.config.slicegpt["recovery"]["steps"] == 2
    assert loaded.config.slicegpt["rotation"] == "per_block"


# Distillation


def test_distillation_follows_the_teacher(tiny_tokenizer):
    """The student ends nearer to the teacher than a model that was trained as long on data alone."""
    teacher = build("llama", torch.float32, vocab_size=98).train()
    before = copy_weights(teacher)
    sequences = load_sequences(TEXTS, tiny_tokenizer, nsamples=1000, seqlen=16, held_out=4)
    ids = torch.stack([sequence["input_ids"] for sequence in sequences.held_out])

    @torch.no_grad()
    def divergence(model):
        log_q, log_p = (each(ids).logits[:, :-1].log_softmax(-1).flatten(0, 1) for each in (model, teacher))
        return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()

    alone, distilled = fresh_model(sparsity=0.6), fresh_model(sparsity=0.6)
    before_training = divergence(distilled)
    recover(alone, tiny_tokenizer, quick_config())
    recover(distilled, tiny_tokenizer, quick_config(distill=True), teacher=teacher)
    assert divergence(distilled) < 0.9 * min(divergence(alone), before_training)
    measured = {
        when: losses["texts"] for when, losses in distilled.config.slicegpt["recovery"]["held_out_losses"].items()
    }
    assert measured == pytest.approx({"before": before_training, "after": divergence(distilled)}, rel=1e-4)
    assert not changed_names(teacher, before) and teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_without_a_weight_the_teacher_changes_nothing(tiny_tokenizer):
    """The loss is scaled as that of `Trainer`, accumulated gradients included."""
    teacher = build("llama", torch.float32, vocab_size=98)
    model = recover(fresh_model(), tiny_tokenizer, quick_config(distill=True, distill_weight=0), teacher=teacher)
    alone = recover(fresh_model(), tiny_tokenizer, quick_config())
    assert relative_error(model(tokens()).logits, alone(tokens()).logits) < 1e-4


def test_a_teacher_in_half_precision(tiny_tokenizer):
    teacher = build("llama", torch.bfloat16, vocab_size=98)
    model = recover(fresh_model(), tiny_tokenizer, quick_config(distill=True, bf16=True), teacher=teacher)
    losses = model.config.slicegpt["recovery"]["held_out_losses"]
    assert losses["after"]["texts"] < losses["before"]["texts"]


@pytest.mark.parametrize(
    "products, bf16, computing",
    [
        ([torch.bfloat16], None, {"student": torch.bfloat16, "teacher": torch.bfloat16}),
        ([torch.bfloat16], False, {"student": torch.float32, "teacher": torch.bfloat16}),
        ([], None, {"student": torch.float32, "teacher": torch.float32}),
        ([], True, {"student": torch.bfloat16, "teacher": torch.bfloat16}),
    ],
)
def test_half_precision_is_trained_in_float32_where_it_is_slow(products, bf16, computing, tiny_tokenizer, hardware):
    hardware(*products)
    teacher, model, seen = build("llama", torch.bfloat16, vocab_size=98), fresh_model(dtype=torch.bfloat16), set()
    before = copy_weights(teacher)
    for name, each in {"student": model, "teacher": teacher}.items():
        layer = Decoder(each).layers[0]
        layer.register_forward_hook(lambda layer, inputs, output, name=name: seen.add((name, output.dtype)))
    recover(model, tiny_tokenizer, quick_config(distill=True, bf16=bf16), teacher=teacher)
    assert seen == set(computing.items())
    assert {each.dtype for each in (*teacher.parameters(), *model.parameters())} == {torch.bfloat16}
    assert not changed_names(teacher, before)
    losses = model.config.slicegpt["recovery"]["held_out_losses"]
    assert losses["after"]["texts"] < losses["before"]["texts"]


def test_by_default_the_dense_model_writes_half_of_the_text(tiny_tokenizer):
    teacher, model = build("llama", torch.float32, vocab_size=98), fresh_model(sparsity=0.6)
    recover(model, tiny_tokenizer, quick_config(distill=True, own_tokens=None, nsamples=32), teacher=teacher)
    record = model.config.slicegpt["recovery"]
    assert (record["source"], record["sequences"], record["held_out_sequences"]) == ("texts, self", 28, 4)
    before, after = (record["held_out_losses"][when] for when in ("before", "after"))
    assert before.keys() == after.keys() == {"texts", "self"}
    assert sum(after.values()) < sum(before.values())
