"""Slices from a checkpoint to a checkpoint, a layer at a time: no model is ever in memory."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from .configuration import SliceGPTConfig
from .data.batches import find_tokenizer
from .data.calibration import calibration_batches
from .distributed import Processes, fingerprint
from .modeling.checks import check_sliceable
from .modeling.contexts import choose_dtype, undisturbed
from .planning.widths import SlicePlan
from .record import record_run
from .reports.model_card import model_card, save_picture
from .slicing.compress import compress
from .slicing.estimate import RunEstimate, estimate_run
from .slicing.state import SlicedResult
from .slicing.twin import is_stock
from .storage.checkpoint import Checkpoint
from .storage.files import check_output, check_space, locked, move_into_place, sync_folder
from .storage.on_disk import STATE_FILE, WEIGHTS, OnDisk, differences
from .storage.shards import DEFAULT_SHARD_SIZE, verify_checkpoint
from .storage.tokenizers import save_tokenizer
from .validation import file_size


logger = logging.get_logger(__name__)

DEFAULT_MEMORY = "1GiB"

DATA_SETTINGS = ("dataset", "text_column", "tokenizer", "nsamples", "seqlen", "own_tokens", "batch_size")
FREE_SETTINGS = (*DATA_SETTINGS, "offload_activations")
"""Settings that show in the tokens, or not at all: a run that resumes may have others."""


def compress_checkpoint(
    model: str | os.PathLike,
    output: str | os.PathLike,
    config: SliceGPTConfig,
    tokenizer: Any = None,
    **options: Any,
) -> PreTrainedModel:
    """
    Slices a checkpoint, on disk or on the Hub, into a folder, layer by layer. The result is, byte by byte, that of
    [`SliceGPTQuantizer.quantize_model`] and `save_pretrained`.

    Args:
        model (`str` or `os.PathLike`): path of a dense checkpoint in safetensors, or its name on the Hub.
        output (`str` or `os.PathLike`): an absent or empty folder.
        config ([`SliceGPTConfig`]): how to slice. Own text of the model comes from the cache, to which
            `optimum-cli slicegpt write` writes it.
        tokenizer (`str` or tokenizer, *optional*): for calibration data that is text; saved in `output`, too.
        **options: the other arguments of [`StreamedRun`]: `dtype`, `max_memory`, `max_shard_size`, `resume`,
            `overwrite`, `trust_remote_code`.

    Returns:
        `PreTrainedModel`: the sliced model without values, on `meta`.

    Raises:
        BlockingIOError, FileExistsError, OSError, ValueError: see [`StreamedRun`] and [`StreamedRun.run`].
    """
    return StreamedRun(model, output, config, tokenizer, **options).run()


class StreamedRun:
    """
    One run from a checkpoint to a folder. All checks run when it is built.

    Several processes share out the calibration batches. Each reads every layer, and the first one writes.

    Args:
        model (`str` or `os.PathLike`): path of a dense checkpoint in safetensors, or its name on the Hub.
        output (`str` or `os.PathLike`): an absent or empty folder. Beside it, a hidden folder holds what is needed to
            resume the run; that folder is deleted at the end.
        config ([`SliceGPTConfig`]): how to slice. Own text of the model comes from the cache, to which
            `optimum-cli slicegpt write` writes it.
        tokenizer (`str` or tokenizer, *optional*): for calibration data that is text; saved in `output`, too.
        dtype (`str` or `torch.dtype`): of the model. `"auto"` is as stored.
        max_memory (`int` or `str`): bytes, or `"2GiB"`, of calibration activations and second moments that are kept
            in memory; others wait in files. Weights and a step's own matrices come on top.
        max_shard_size (`int` or `str`): of a weight file, as in `save_pretrained`.
        resume (`bool`): resume a run into `output` that was interrupted, if there is one.
        overwrite (`bool`): replace an earlier result in `output`, and, unless `resume`, an interrupted run into it.
        trust_remote_code (`bool`): run code that comes with the model.

    Attributes:
        plan ([`SlicePlan`]): widths and neurons.
        batches ([`TokenBatches`]): what it calibrates on.

    Raises:
        FileExistsError: `output` is not empty.
        OSError: there is no such model.
        ValueError: the model, its class, its files, the widths, the sizes or the calibration data cannot be used.
    """

    @undisturbed()
    def __init__(
        self,
        model: str | os.PathLike,
        output: str | os.PathLike,
        config: SliceGPTConfig,
        tokenizer: Any = None,
        *,
        dtype: str | torch.dtype = "auto",
        max_memory: int | str = DEFAULT_MEMORY,
        max_shard_size: int | str = DEFAULT_SHARD_SIZE,
        resume: bool = False,
        overwrite: bool = False,
        trust_remote_code: bool = False,
    ):
        self.processes = Processes(config.device or "cpu")
        self.output = Path(output).resolve()
        check_output(self.output, overwrite)
        self.max_memory, self.max_shard_size = file_size(max_memory), file_size(max_shard_size)
        self.config, self.resume, self.overwrite = config, resume, overwrite
        self.tokenizer = None if tokenizer is None else find_tokenizer(tokenizer)
        self.checkpoint = Checkpoint(model, dtype, trust_remote_code)
        dense = self.checkpoint.model
        check_sliceable(dense)
        if not is_stock(dense):
            raise ValueError(
                f"Streaming takes transformers' own classes, and this one is of {type(dense).__module__}; leave "
                "trust_remote_code out, or slice in memory."
            )
        self.plan = SlicePlan.from_config(config, dense.config)
        self.plan.check_rest(config, dense.config)
        self.batches = calibration_batches(dense, config, self.tokenizer, self.checkpoint.tensor)

    def estimate(self, timed: bool = True) -> RunEstimate:
        """Estimates what the run will take; see [`estimate_run`] for `timed`."""
        return estimate_run(
            self.checkpoint.model,
            self.plan,
            self.config,
            tokens=self.batches.ntokens,
            tokens_per_batch=max(batch["input_ids"].numel() for batch in self.batches),
            max_memory=self.max_memory,
            groups=len(set(self.batches.groups)),
            timed=timed,
        )

    @property
    def folder(self) -> Path:
        """The working folder."""
        return self.output.parent / f".{self.output.name}.slicegpt"

    @undisturbed()
    def run(self, add_files: Callable[[Path], None] = lambda folder: None) -> PreTrainedModel:
        """
        Slices, from where an earlier run was interrupted if `resume` says so.

        Args:
            add_files (callable, *optional*): writes further files of the output into a folder.

        Returns:
            `PreTrainedModel`: the sliced model without values, on `meta`.

        Raises:
            BlockingIOError: another run writes to `output`.
            ConnectionError: another process has failed.
            FileExistsError: `output` is not empty, or an interrupted run is to be resumed or deleted first.
            OSError: the disk is full. The state of the last finished step is kept.
            ValueError: the interrupted run was of another model, other settings or other data, or of another number of
                processes; a weight or an activation is not finite.
        """
        first = self.processes.is_first
        with locked(self.output) if first else nullcontext():
            saved, costs = (
                self.processes.gathered(self._saved_state() if first else None)[0],
                self.estimate(timed=False),
            )
            try:
                check_space(self.output, costs.bytes_written + costs.bytes_per_step, self.folder)
                storage = OnDisk(
                    self.checkpoint,
                    self.processes,
                    self.folder,
                    max_memory=self.max_memory,
                    max_shard_size=self.max_shard_size,
                    fingerprint=self.fingerprint(),
                    saved=saved,
                )
                (result,) = compress(self.checkpoint.model, [self.plan], self.batches, self.config, storage)
                self._finish(result, add_files)
            except BaseException:
                if first:
                    self._leave()
                raise
        return result.model

    def fingerprint(self) -> dict[str, Any]:
        """Returns all that must be the same when a run resumes, under the names that an error message uses."""
        settings = {key: value for key, value in self.config.to_dict().items() if key not in FREE_SETTINGS}
        stored = self.checkpoint.model.dtype
        # Which one is chosen depends on the machine, on which a run may not have begun.
        dtype = choose_dtype(self.config.dtype, stored, torch.device(self.config.device or "cpu"))
        settings |= {"dtype": str(dtype).removeprefix("torch."), "model_dtype": str(stored)}
        return {
            "model": self.checkpoint.fingerprint(),
            "settings": settings | {"shards": self.max_shard_size},
            "widths": [*self.plan.widths, self.plan.neurons],
            "calibration data": fingerprint([self.batches.batches, self.batches.groups]),
            "numbers of processes": self.processes.count,
        }

    def _saved_state(self) -> dict[str, Any] | None:
        check_output(self.output, self.overwrite)
        state = self.folder / STATE_FILE
        # A run that ended before its first step lacks one of the two.
        begun = state.exists() and (self.folder / WEIGHTS).exists()
        if not begun or (self.overwrite and not self.resume):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            sync_folder(self.output.parent)
            return None
        remedy = f"or delete {str(self.folder)!r} to start again"
        try:
            saved = json.loads(state.read_text())
        except ValueError as error:
            raise ValueError(f"The state of the interrupted run is damaged; delete {str(self.folder)!r}.") from error
        if not self.resume:
            raise FileExistsError(
                f"A run into {str(self.output)!r} was interrupted; resume it with "
                f"resume=True, --resume on the command line, {remedy}."
            )
        fingerprint = json.loads(json.dumps(self.fingerprint()))
        differing = differences(saved["fingerprint"], fingerprint)
        if differing:
            raise ValueError(
                f"The interrupted run into {str(self.output)!r} had other {' and '.join(differing)}; resume it as it "
                f"was begun, {remedy}."
            )
        return saved

    def _leave(self) -> None:
        """Keeps what an unfinished run has done, if a state says what that is."""
        if (self.folder / STATE_FILE).exists():
            logger.warning(
                f"What is finished is kept in {str(self.folder)!r}. With resume=True, --resume on the command line, "
                "the same run continues from there; delete that folder to start again."
            )
        else:
            shutil.rmtree(self.folder, ignore_errors=self.processes.count > 1)  # Others may still write there.

    def _finish(self, result: SlicedResult, add_files: Callable[[Path], None]) -> None:
        """Records the run, and turns its folder into the output."""
        dense, energy_kept, seconds = self.checkpoint.model, result.energy_kept, result.seconds
        record_run(dense, result.model, self.plan, self.config, self.batches, energy_kept, seconds)
        if self.processes.is_first:
            self._publish(result.model, add_files)
        self.processes.gathered()  # All return when the output is there.
        shutil.rmtree(self.folder, ignore_errors=True)  # of a machine that shares no disk with the first process

    def _publish(self, model: PreTrainedModel, add_files: Callable[[Path], None]) -> None:
        """Adds the other files, verifies the checkpoint, and renames it to `output`."""
        weights, beside = self.folder / WEIGHTS, self.folder / "beside"
        shutil.rmtree(beside, ignore_errors=True)
        model.save_pretrained(beside, state_dict={})  # This writes all files except the weights.
        model_card(model, picture=save_picture(model.config, beside)).save(beside / "README.md")
        if self.tokenizer is not None:
            save_tokenizer(self.tokenizer, beside)
        add_files(beside)
        shutil.copytree(beside, weights, dirs_exist_ok=True)
        verify_checkpoint(weights, model)
        for path in [*weights.rglob("*")]:
            if path.is_file():
                with open(path, "r+b") as file:  # Windows syncs only files that are opened for writing.
                    os.fsync(file.fileno())
        sync_folder(weights)
        move_into_place(weights, self.output)
        sync_folder(self.output.parent)
        shutil.rmtree(self.folder)
