"""A sliced model is trained like any other: Trainer with checkpoints, PEFT in its many forms."""

import pytest
import torch
from forking import run_program
from peft import AutoPeftModelForCausalLM, LoraConfig, PromptTuningConfig, get_peft_model
from sliced_models import model_of_kind
from tiny import relative_error, tokens
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


# Training


def trainer(model, folder, **kwargs):
    arguments = {"max_steps": 4, "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    data = [{"input_ids": row, "labels": row} for row in tokens(32)]
    return Trainer(model, TrainingArguments(folder, **arguments | kwargs), train_dataset=data)


@pytest.mark.parametrize("reentrant", [True, False])
def test_training_with_gradient_checkpointing_resumes_where_it_stopped(reentrant, tmp_path):
    kwargs = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
        "save_steps": 2,
        "logging_steps": 1,
    }
    whole = trainer(model_of_kind("llama"), tmp_path, **kwargs)
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    resumed = trainer(model_of_kind("llama"), tmp_path / "again", **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    start = model_of_kind("llama").state_dict()
    for name, parameter in resumed.model.named_parameters():
        torch.testing.assert_close(parameter, whole.model.get_parameter(name))
        assert not torch.equal(parameter, start[name]), f"{name} was not trained"


def test_trainer_checkpoint_is_a_sliced_model(tmp_path):
    run = trainer(model_of_kind("opt"), tmp_path, save_steps=4)
    run.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    torch.testing.assert_close(loaded(tokens()).logits, run.model.eval()(tokens()).logits)


# PEFT


def train_steps(adapted, steps=20):
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    adapted.train()
    losses = []
    for _ in range(steps):
        loss = adapted(tokens(8), labels=tokens(8)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    adapted.eval()
    return losses


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True, "target_modules": "all-linear"},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["attn_shortcut", "mlp_shortcut", "embed_tokens", "lm_head"]},
    ],
    ids=["dora", "modules_to_save", "shortcuts_and_both_ends"],
)
def test_adapters_lower_the_loss_and_merge(settings):
    adapted = get_peft_model(model_of_kind("llama"), LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    losses = train_steps(adapted)
    assert losses[-1] < losses[0] - 0.1
    expected = adapted(tokens()).logits
    merged = adapted.merge_and_unload()
    assert type(merged) is type(model_of_kind("llama"))
    assert relative_error(merged(tokens()).logits, expected) < 1e-5


IN_A_FRESH_PROCESS = """
import sys, torch, optimum_slicegpt
from forking import run_program
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
assert type(model.get_base_model()).__name__ == "SlicedLlamaForCausalLM"
torch.save(model(torch.load(sys.argv[1] + "/inputs.pt")).logits.detach(), sys.argv[1] + "/logits.pt")
"""


def test_adapter_finds_its_sliced_base_in_a_fresh_process(tmp_path):
    folder = tmp_path / "sliced"
    model_of_kind("llama").save_pretrained(folder)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(task_type="CAUSAL_LM", r=4, use_dora=True, modules_to_save=["lm_head"]),
    )
    train_steps(adapted, 3)
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    torch.save(tokens(), adapter / "inputs.pt")
    run_program("-c", IN_A_FRESH_PROCESS, adapter)
    torch.testing.assert_close(torch.load(adapter / "logits.pt"), adapted(tokens()).logits)

    merged = AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative_error(loaded(tokens()).logits, adapted(tokens()).logits) < 1e-5


def test_prompt_tuning_wants_the_width_of_the_embeddings():
    model = model_of_kind("llama")
    width = model.get_input_embeddings().weight.shape[1]
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=width)
    losses = train_steps(get_peft_model(model, settings))
    assert losses[-1] < losses[0]
