"""Saves tokenizers as the files that they come from: llama.cpp and older readers know those."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.utils import httpx


CONFIG, BACKEND = "tokenizer_config.json", "tokenizer.json"
FILES = (CONFIG, BACKEND, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")
FILES += ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
PASSING = {CONFIG: {"is_local", "local_files_only"}, BACKEND: {"truncation", "padding"}}
"""Keys that say where a tokenizer was loaded from, and how it was last called."""


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike) -> None:
    """
    Saves a tokenizer beside a model. Files that it was loaded from, in a folder or on the Hub, are copied. One that
    was changed since, or made in memory, saves itself. Both can be read by transformers 4.5x.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): also another object with `save_pretrained`.
        folder (`str` or `os.PathLike`): of the model.

    Raises:
        TypeError: `tokenizer` is none.
    """
    if not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(f"save_tokenizer takes a tokenizer, and then a folder; got {tokenizer!r} first.")
    with tempfile.TemporaryDirectory() as temporary:
        saved, copied = Path(temporary, "saved"), Path(temporary, "copied")
        tokenizer.save_pretrained(saved)
        _copy_files(tokenizer, copied)
        shutil.copytree(copied if _says_the_same(copied, saved, tokenizer) else saved, folder, dirs_exist_ok=True)
    _rename_for_older_readers(Path(folder, CONFIG))


def _copy_files(tokenizer: Any, folder: Path) -> None:
    """Copies the files that a tokenizer was loaded from, as far as they can be found."""
    folder.mkdir()
    source = getattr(tokenizer, "name_or_path", "")
    try:
        source = Path(source if os.path.isdir(source) else snapshot_download(source, allow_patterns=[*FILES]))
    except (OSError, ValueError, httpx.TransportError):  # no such name, no connection
        return
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _says_the_same(copied: Path, saved: Path, tokenizer: Any) -> bool:
    """Tells whether a tokenizer that is loaded from `copied` would save itself as this one did, in `saved`."""
    if not any(copied.iterdir()) or tokenizer._auto_class is not None:  # Its code is not among the files.
        return False
    again = saved.with_name("again")
    try:
        type(tokenizer).from_pretrained(copied).save_pretrained(again)
    except (OSError, ValueError):  # Files are missing.
        return False
    return _contents(again) == _contents(saved)


def _contents(folder: Path) -> dict[str, Any]:
    """Reads the files of a folder, without what is passing."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in PASSING.keys() & found.keys():
        found[name] = {key: value for key, value in json.loads(found[name]).items() if key not in PASSING[name]}
    return found


def _rename_for_older_readers(path: Path) -> None:
    """Replaces names of transformers 5 by those that transformers 4.5x knows, and 5 still reads."""
    if not path.exists():
        return
    keys = json.loads(path.read_text(encoding="utf-8"))
    newer = dict(keys)
    if keys.get("tokenizer_class") == "TokenizersBackend":
        keys["tokenizer_class"] = "PreTrainedTokenizerFast"
        keys.setdefault("model_input_names", ["input_ids", "attention_mask"])  # 4.5x would add token_type_ids.
    if isinstance(keys.get("extra_special_tokens"), list):  # 4.5x knows a dictionary by that name.
        keys["additional_special_tokens"] = keys.pop("extra_special_tokens")
    if keys != newer:
        path.write_text(json.dumps(keys, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
