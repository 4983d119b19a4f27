"""Exports the model with torch's own ONNX exporter, free batch and length, and compares logits in ONNX Runtime."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from contract import arguments, write
from use import load, sequences


class Logits(torch.nn.Module):
    """A model as ONNX sees it: tokens to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, use_cache=False).logits


@torch.no_grad()
def main():
    args = arguments()
    model, rows = load(args.model), sequences(args.reference)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        settings = {"input_names": ["input_ids"], "output_names": ["logits"], "verbose": False}
        sizes = {"input_ids": {0: "batch", 1: "length"}}
        torch.onnx.export(Logits(model), (rows[:2, :16],), file, dynamo=True, dynamic_shapes=sizes, **settings)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        worst = 0
        for ids in (rows[:2, :16], rows[:3, :50], rows[:1, :256]):
            (found,) = session.run(None, {"input_ids": ids.numpy()})
            worst = max(worst, np.abs(found - model(ids).logits.numpy()).max().item())
    assert worst < 1e-2, worst
    write(args.output, {"checks": {"logits": f"within {worst:.0e}"}}, "onnxruntime", "onnx", "torch", "transformers")


if __name__ == "__main__":
    main()
