"""
Recovery fine-tuning: LoRA on a sliced model, merged and saved as the same sliced class.

    python examples/recover_lora.py --model sliced --dataset wikitext2 --output recovered

Rank, alpha and length are the paper's (SliceGPT, section 4.1), dropout is from its authors' instructions. Everything
else is PEFT and Trainer as usual.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from optimum_slicegpt import evaluate_perplexity, load_batches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a sliced checkpoint")
    parser.add_argument("--output", required=True, help="folder for the recovered checkpoint")
    parser.add_argument("--dataset", default="wikitext2", help="name or file to train on")
    parser.add_argument("--eval-dataset", help="name or file to measure on; a name's test split")
    parser.add_argument("--nsamples", type=int, default=256)
    parser.add_argument("--eval-nsamples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=4, help="batches per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    sizes = {"seqlen": args.seqlen, "batch_size": 1}
    train = load_batches(args.dataset, tokenizer, nsamples=args.nsamples, **sizes)
    held_out = load_batches(
        args.eval_dataset or args.dataset, tokenizer, split="test", nsamples=args.eval_nsamples, seed=None, **sizes
    )
    print(f"perplexity before: {evaluate_perplexity(model, held_out).perplexity:.2f}")

    lora = LoraConfig(r=32, lora_alpha=10, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    rows = [{"input_ids": batch["input_ids"][0], "labels": batch["input_ids"][0]} for batch in train]
    arguments = TrainingArguments(
        args.output, num_train_epochs=1, per_device_train_batch_size=args.batch_size, logging_steps=5, report_to=[],
        gradient_accumulation_steps=args.accumulate, learning_rate=args.learning_rate, lr_scheduler_type="cosine",
        warmup_steps=5, save_strategy="no", bf16=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    Trainer(adapted, arguments, train_dataset=rows).train()

    recovered = adapted.merge_and_unload()
    print(f"perplexity after: {evaluate_perplexity(recovered, held_out).perplexity:.2f}")
    recovered.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
