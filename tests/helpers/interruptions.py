"""Runs that die, and whether they end in the same files nevertheless."""

import hashlib
import json

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Died(Exception):
    pass


def die_at_call(monkeypatch, owner, name, call, error=Died):
    """Lets a method raise instead of its `call`-th call."""
    original, made = getattr(owner, name), []

    def replacement(*args, **kwargs):
        made.append(None)
        if len(made) == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, replacement)


class Fault(TorchDispatchMode):
    """Counts torch's operations, and lets the one with number `at` fail, as for lack of memory."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return func(*args, **kwargs or {})


def hash_files(folder):
    """Hashes all files of a checkpoint, without the times that its configuration holds."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(found["config.json"])
    del config["slicegpt"]["seconds"]
    found["config.json"] = json.dumps(config).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
