"""
Lets a model write text, and keeps it, so that runs, sweeps and recoveries share it: in the folder `slicegpt` of
`HF_HOME`, a file for each model, seed and length of texts.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..distributed import Processes, fingerprint
from ..modeling.families import begin_tokens
from .beginnings import NO_WORDS, Beginnings
from .sampling import GREEDY_TOKENS, SAMPLING, write_blocks


OWN_TOKENS = 65_536
"""Most tokens that a model writes by default."""

TEXT_LENGTH = 256
"""
Tokens of a text that a model writes. On SmolLM2, calibrated on as many tokens of them, texts of 512 tokens lose 0.03
nats more, and texts of 128 tokens as much. Longer sequences hold several texts.
"""

VALUES_HASHED = 1024
"""About how many values of a parameter are hashed; hashing all of a large model takes long."""

NARROW = 2.0**-14
"""Smallest normal number of float16. Smaller values count as 0: float16 holds too few of their digits."""


def own_text(
    model: PreTrainedModel,
    tokenizer: Any = None,
    *,
    tokens: int,
    length: int = TEXT_LENGTH,
    seed: int | None = 0,
    device: str | None = None,
) -> Tensor:
    """
    Returns text that a model has written: what is in the cache, and where that is too little, more of it. Of several
    processes, the first writes, and all get the same.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the model. Without it texts begin with random tokens.
        tokens (`int`): about how many.
        length (`int`): tokens per sequence.
        seed (`int`, *optional*, defaults to 0): of the draws. `None` is 0.
        device (`str`, *optional*): where it is written, and over which processes talk. By default the model's own.

    Returns:
        `torch.Tensor`: `(N, length)` token ids, int64 on the CPU. More tokens begin with fewer.

    Raises:
        ConnectionError: another process has failed.
        OSError: the cache cannot be written to.
    """
    processes, count = Processes(device or model.device), count_sequences(tokens, length)
    if not processes.is_first:
        return processes.agreed(torch.empty(count, length, dtype=torch.long))
    own = OwnText.of_model(model, tokenizer, seed=seed, length=length)
    return processes.agreed(own.write(model, count, device))


def count_sequences(tokens: int, length: int) -> int:
    """Returns the number of sequences that come nearest to a number of tokens, but at least one."""
    return max(1, round(tokens / length))


def text_length(length: int) -> int:
    """Returns the length of the texts of which sequences of a length consist."""
    return TEXT_LENGTH if length % TEXT_LENGTH == 0 else length


@dataclass(frozen=True)
class OwnText:
    """
    The text that a model has written, with one seed, in sequences of one length. A sequence is a text, or several of
    `TEXT_LENGTH` tokens where its length is a multiple of that, which all such lengths share.

    Args:
        file (`Path`): in the cache; absent where there is no text.
        seed (`int`), length (`int`): of the draws, and tokens per sequence.
        beginnings ([`Beginnings`]): of its texts.
    """

    file: Path
    seed: int
    length: int
    beginnings: Beginnings = NO_WORDS

    @classmethod
    def of_model(
        cls,
        model: PreTrainedModel,
        tokenizer: Any = None,
        *,
        seed: int | None,
        length: int,
        weights: Callable[[str], Tensor] | None = None,
    ) -> OwnText:
        """
        Finds the place of a model's text in the cache.

        Args:
            model (`PreTrainedModel`): a dense causal language model.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): see [`own_text`].
            seed (`int`, *optional*): `None` is 0.
            length (`int`): tokens per sequence.
            weights (`Callable[[str], torch.Tensor]`, *optional*):
                Reads a parameter by its name, of a model on `meta`.
        """
        beginnings = Beginnings.in_words_of(tokenizer, begin_tokens(model.config))
        settings = SAMPLING | {"greedy": GREEDY_TOKENS} | asdict(beginnings)
        name = fingerprint([weights_fingerprint(model, weights), settings])[:32]
        folder, seed = Path(constants.HF_HOME, "slicegpt"), seed or 0
        file = folder / f"{name}-seed{seed}-length{text_length(length)}.safetensors"
        return cls(file, seed, length, beginnings)

    def read(self) -> Tensor:
        """Reads all sequences that are in the cache: `(N, length)` token ids, int64."""
        texts = self._read_texts().flatten()
        return texts[: len(texts) // self.length * self.length].view(-1, self.length)

    def _read_texts(self):
        if not self.file.exists():
            return torch.empty(0, text_length(self.length), dtype=torch.long)
        return load_file(self.file)["input_ids"].long()

    def write(self, model: PreTrainedModel, count: int, device: str | None = None) -> Tensor:
        """
        Lets the model write what is missing, and keeps it. Where another process is at it, waits for that one.

        Args:
            model (`PreTrainedModel`): that of [`OwnText.of_model`], with its values.
            count (`int`): sequences.
            device (`str`, *optional*): where it computes. By default where it is.

        Returns:
            `torch.Tensor`: the first `count` sequences, `(count, length)`, int64 on the CPU.

        Raises:
            OSError: some are missing, and the cache cannot be written to.
        """
        ids = self.read()
        if len(ids) >= count:  # The cache may be read-only.
            return ids[:count]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                texts = self._read_texts()
                needed, size = count * self.length // texts.shape[1], texts.shape[1]
                if len(texts) < needed:
                    settings = {"length": size, "seed": self.seed, "beginnings": self.beginnings, "device": device}
                    for block in write_blocks(model, len(texts), needed, **settings):
                        texts = torch.cat([texts, block])
                        self._save(texts)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"Cannot keep the text that the model writes in {str(self.file.parent)!r}: {error}; set HF_HOME to a "
                "folder that can be written to, or own_tokens to 0."
            ) from error
        return texts[:needed].reshape(count, self.length)

    def _save(self, texts: Tensor) -> None:
        aside = self.file.with_suffix(f".{secrets.token_hex(4)}")
        save_file({"input_ids": texts.int()}, aside)
        os.replace(aside, self.file)


def weights_fingerprint(model: PreTrainedModel, weights: Callable[[str], Tensor] | None = None) -> str:
    """
    Hashes names, shapes and some values of all parameters. Values count in bfloat16, so that a model has the same hash
    in every dtype that holds what its checkpoint does.

    Args:
        model (`PreTrainedModel`): on any device.
        weights (`Callable[[str], torch.Tensor]`, *optional*): reads a parameter by its name, of a model on `meta`.

    Returns:
        `str`: SHA-256, in hexadecimal digits.
    """
    sampled = {}
    for name, parameter in model.named_parameters():
        values = (parameter.detach() if weights is None else weights(name)).flatten()
        values = values[:: max(1, len(values) // VALUES_HASHED)].to("cpu", torch.bfloat16).float()
        sampled[name] = tuple(parameter.shape), values.where(values.abs() >= NARROW, 0)
    return fingerprint(sampled)
