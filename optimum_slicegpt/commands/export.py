"""`optimum-cli slicegpt export`."""

from argparse import Namespace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from ..export import check_exportable, export_stock
from ..storage.files import saving, written_aside
from ..storage.tokenizers import save_tokenizer
from .loading import load_config_and_tokenizer, load_model
from .printing import print_json


def run(args: Namespace) -> None:
    """
    Saves a sliced model as a model of its family's own class, with its tokenizer, and prints its class and size.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt export`.

    Raises:
        OSError, ValueError: the model cannot be exported, or the output cannot be used. No weights are read before
            both are checked.
    """
    with written_aside(Path(args.output), args.overwrite) as folder:
        model_config, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
        with torch.device("meta"):
            check_exportable(AutoModelForCausalLM.from_config(model_config, trust_remote_code=args.trust_remote_code))
        model = export_stock(load_model(args, "auto"))
        with saving(Path(args.output)):
            model.save_pretrained(folder)
            save_tokenizer(tokenizer, folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    name, width, count = type(model).__name__, model.config.hidden_size, model.num_parameters()
    if args.json:
        report = {"model": args.model, "output": args.output, "architecture": name, "hidden_size": width}
        print_json(report | {"parameters": count, "bytes_on_disk": size})
    else:
        print(f"{name}: hidden size {width:,}, {count:,} parameters, {size / 1e6:,.1f} MB")
        print(f"Saved in {args.output}")
