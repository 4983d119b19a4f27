"""MLX-LM on the CPU, in float32."""

import mlx.core as mx
import numpy as np
from contract import arguments, measure, write
from mlx_lm import load
from mlx_lm.generate import generate_step


def main():
    args = arguments()
    mx.set_default_device(mx.cpu)
    model, _ = load(args.model)
    model.set_dtype(mx.float32)

    def logits(ids):
        return np.array(model(mx.array([ids]))[0])

    def generate(ids, tokens):
        return [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=tokens)]

    found = {"class": type(model).__module__} | measure(args.reference, logits, generate)
    write(args.output, found, "mlx-lm", "mlx")


if __name__ == "__main__":
    main()
