"""Trains a few steps with TRL, by examples (SFT) and by preferences (DPO). What is saved gives the same logits."""

import tempfile

from contract import arguments, write
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from use import difference, is_tied, load, sequences


QUESTIONS = [(f"What is {n} times {n + 1}?", f"It is {n * (n + 1)}.", f"It is {n + n + 1}.") for n in range(2, 14)]
SETTINGS = {
    "max_steps": 4,
    "learning_rate": 2e-5,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "max_length": 48,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}


def turn(role, content):
    return [{"role": role, "content": content}]


def train(trainer, ids) -> str:
    """Trains, checks what is saved, and returns the loss before and after."""
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0], losses
    model = trainer.model.eval()
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_model(folder)
        loaded = load(folder)
    assert type(loaded) is type(model) and is_tied(loaded) == is_tied(model)
    assert difference(loaded, model, ids) == 0
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f}"


def main():
    args = arguments()
    ids = sequences(args.reference)[:1, :64]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tied = is_tied(load(args.model))
    checks = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"messages": turn("user", question) + turn("assistant", right)} for question, right, _ in QUESTIONS]
        settings = SFTConfig(folder, **SETTINGS)
        sft = SFTTrainer(load(args.model), settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        checks["SFT"] = train(sft, ids)
        rows = [
            {"prompt": turn("user", question)}
            | {"chosen": turn("assistant", right), "rejected": turn("assistant", wrong)}
            for question, right, wrong in QUESTIONS
        ]
        dpo = DPOTrainer(
            load(args.model),
            args=DPOConfig(folder, **SETTINGS),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        checks["DPO"] = train(dpo, ids)
        assert is_tied(sft.model) == is_tied(dpo.model) == tied
    write(args.output, {"checks": checks | {"tied": tied}}, "trl", "torch", "transformers")


if __name__ == "__main__":
    main()
