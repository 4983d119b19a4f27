"""Reads a checkpoint, on disk or in the Hub's cache, one tensor at a time, and checks its files first."""

import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..modeling.weights import persistent_buffers
from ..progress import without_bars, without_warnings
from .spill import ELEMENTS_AT_ONCE, is_finite


def weight_files(model: str) -> list[Path]:
    """
    Lists the files that hold a model's weights: safetensors, which lie inside the folder if the model is one.

    Args:
        model (`str`): path of a folder, or name on the Hub, from where missing files are downloaded.

    Raises:
        OSError: there is no such model, or no such file.
        ValueError: the model has no safetensors; its index is damaged, or names files that are not the model's own.
    """
    options = {"_raise_exceptions_for_gated_repo": False, "_raise_exceptions_for_missing_entries": False}
    single = cached_file(model, SAFE_WEIGHTS_NAME, **options)
    if single is not None:
        return [_inside(model, Path(single))]
    index = cached_file(model, SAFE_WEIGHTS_INDEX_NAME, **options)
    if index is None:
        raise ValueError(
            f"{model!r} has no weights in safetensors, the one format that is read: others can run code. Load the "
            "model where you trust it, and save it with save_pretrained."
        )
    return [_shard(model, name) for name in _names_in(_inside(model, Path(index)))]


def _names_in(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        paths = {name: Path(name) for name in names}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{str(index)!r} is not an index of weights: {error!r}. Download it again.") from error
    for name, path in paths.items():
        if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
            raise ValueError(
                f"{str(index)!r} names {name!r}, which is no safetensors file inside its folder; do not trust it."
            )
    return sorted(names)


def _shard(model: str, name: str) -> Path:
    found = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    if found is None:
        raise FileNotFoundError(f"{model!r} lacks {name!r}, which its index names; download it again.")
    return _inside(model, Path(found))


def _inside(model: str, path: Path) -> Path:
    """Returns a file of a folder, unless it is a link out of it. The Hub's cache links to files beside a folder."""
    folder = Path(model)
    if folder.is_dir():
        home = folder.resolve()
        home = home.parent.parent if home.parent.name == "snapshots" else home
        if not path.resolve().is_relative_to(home):
            raise ValueError(
                f"{str(path)!r} is a link to {str(path.resolve())!r}, out of its folder; copy the file there if you "
                "trust it."
            )
    return path


class Checkpoint:
    """
    A causal language model on disk. Only its configuration and the headers of its files are read at first.

    Args:
        model (`str`): path of a folder, or name on the Hub.
        dtype (`str` or `torch.dtype`): of the model. `"auto"` is as stored.
        trust_remote_code (`bool`): run code that comes with the model.

    Attributes:
        model (`PreTrainedModel`): the model as `from_pretrained` would load it, with parameters on `meta`.

    Raises:
        OSError: there is no such model.
        ValueError: [`weight_files`] refuses the files; the model is quantized; a file is damaged; a tensor is missing,
            or has another shape than the model's.
    """

    def __init__(self, model: str, dtype: str | torch.dtype = "auto", trust_remote_code: bool = False):
        self.name = str(model)
        config = AutoConfig.from_pretrained(self.name, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(
                f"{self.name!r} is quantized; slice the full-precision model first, and quantize the result."
            )
        self.files = weight_files(self.name)
        self._open, self._file_of = {}, {}
        for path in self.files:
            for key in self._opened(path).keys():
                self._file_of[key] = path
        self.model = self._skeleton(dtype, trust_remote_code)
        self._map()

    def _opened(self, path: Path):
        if path not in self._open:
            try:
                # A mapped file would count as memory of this process; one that is read does not.
                self._open[path] = safe_open(path, framework="pt", backend="pread").__enter__()
            except SafetensorError as error:
                raise ValueError(f"{str(path)!r} is damaged ({error}); download it again.") from error
        return self._open[path]

    @without_bars()  # No weights are loaded.
    @without_warnings()
    def _skeleton(self, dtype, trust_remote_code):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            self.name,
            dtype=dtype,
            device_map="meta",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # The loop below raises a clearer error.
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
        for key, stored, expected in sorted(info["mismatched_keys"]):
            raise ValueError(
                f"{key} in {self.name!r} has shape {tuple(stored)}, and by the configuration {tuple(expected)}: they "
                "are not of the same model."
            )
        # The model is built again with buffers, which checkpoints do not hold.
        with init_empty_weights(include_buffers=False):
            model = type(loaded)._from_config(
                copy.deepcopy(loaded.config),
                dtype=loaded.dtype,
                attn_implementation=loaded.config._attn_implementation,
                experts_implementation=loaded.config._experts_implementation,
            )
        model.tie_weights()  # tied weights got an empty parameter each
        model.generation_config = loaded.generation_config
        model.config.name_or_path = loaded.config.name_or_path
        return model.eval()

    def _map(self) -> None:
        """Maps tensors of the files to those of the model: names may differ, and experts may become one tensor."""
        model, expected = self.model, self.model.state_dict()
        conversions = get_model_conversion_mapping(model)
        renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        converters = [each for each in conversions if isinstance(each, WeightConverter)]
        self._converters = {pattern: each for each in converters for pattern in each.source_patterns}
        self._sources: dict[str, list[tuple[str, str | None]]] = {}
        for key in sorted(self._file_of, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
            if name not in expected and key in expected:
                name, pattern = rename_source_key(key, [], [], model.base_model_prefix, expected)
            if name in expected:
                self._sources.setdefault(name, []).append((key, pattern))
        self._ties = {}
        for name, source in model.all_tied_weights_keys.items():
            if source not in self._sources:
                self._ties[source] = name
            elif name not in self._sources:
                self._ties[name] = source
            elif torch.equal(self.tensor(name), self.tensor(source)):
                self._ties[name] = source
            else:
                raise ValueError(
                    f"{self.name!r} has different values for {name} and {source}, which its configuration ties; set "
                    "tie_word_embeddings to false in its config.json."
                )
        missing = [name for name in expected if self._ties.get(name, name) not in self._sources]
        if len(missing) == 1 and model.get_parameter_or_buffer(missing[0]) is model.get_output_embeddings().weight:
            raise ValueError(
                f"{self.name!r} has no head, as models that embed text have none; slice the causal language model "
                "that it was made from, or, if its head was the embedding, set tie_word_embeddings to true in its "
                "config.json."
            )
        if missing:
            raise ValueError(f"{self.name!r} lacks {len(missing)} tensors, the first {missing[0]}; download it again.")
        for name in persistent_buffers(model):
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, self.tensor(name))

    def tensor(self, name: str) -> Tensor:
        """
        Reads a tensor of the model.

        Raises:
            ValueError: it is not finite.
        """
        name, dtype = self._ties.get(name, name), self.model.get_parameter_or_buffer(name).dtype
        sources = self._sources[name]
        key, pattern = sources[0]
        if pattern is None:
            return self._read(key, dtype)
        converter = copy.deepcopy(self._converters[pattern])
        for key, pattern in sources:
            converter.add_tensor(name, key, pattern, lambda key=key: self._read(key, dtype))
        (made,) = converter.convert(name, model=self.model, config=self.model.config).values()
        return made[0] if isinstance(made, list) else made

    def _read(self, key, dtype):
        stored = self._opened(self._file_of[key]).get_slice(key)
        shape = stored.get_shape()
        if not shape:
            return stored[...].to(dtype)
        tensor = torch.empty(shape, dtype=dtype)
        rows = max(1, ELEMENTS_AT_ONCE * shape[0] // max(1, tensor.numel()))
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            tensor[start:stop] = stored[start:stop]
        if not is_finite(tensor):
            raise ValueError(
                f"{key} in {str(self._file_of[key])!r} is not finite in {dtype}; the file is damaged, or "
                "the dtype too narrow."
            )
        return tensor

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """
        Reads all parameters of some modules.

        Args:
            names (`Iterable[str]`): names of the modules.

        Returns:
            `dict[str, torch.Tensor]`: by the parameters' names; tied parameters are one tensor.
        """
        found, read, prefixes = {}, {}, tuple(f"{name}." for name in names)
        for name, _ in self.model.named_parameters(remove_duplicate=False):
            if name.startswith(prefixes):
                source = self._ties.get(name, name)
                found[name] = read[source] if source in read else read.setdefault(source, self.tensor(source))
        return found

    def fingerprint(self) -> dict:
        """Identifies a checkpoint by the names, sizes, times and headers of its files; tensors are not read."""
        files, headers = [], hashlib.sha256()
        for path in self.files:
            about = path.stat()
            files.append([path.name, about.st_size, about.st_mtime_ns])
            with open(path, "rb") as file:
                headers.update(file.read(int.from_bytes(file.read(8), "little")))
        config = {key: value for key, value in self.model.config.to_dict().items() if key != "transformers_version"}
        return {"files": files, "headers": headers.hexdigest(), "config": json.loads(json.dumps(config, default=str))}
