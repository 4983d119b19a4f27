"""
A pretend GPU for machines without one: tensors compute on the CPU, and every storage has a tag with its device.

    with pretend_gpu() as gpu:
        model.compress(SliceGPTConfig(device="cuda", ...))

It raises where CUDA would: at operands on two devices, at indices on the GPU into a tensor on the CPU, at a tensor on
the GPU that becomes a NumPy array, and at a generator on the CPU that fills a tensor on the GPU. It counts what costs
time there, by the line of the package that asks for it: transfers, and synchronisations, at which the CPU waits for
the GPU. It knows nothing of what kernels do: their precision, their order, dtypes that they lack.
"""

import contextlib
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

MIXING = {"copy_", "_copy_from", "set_", "_has_compatible_shallow_copy_type"}
"""Operations whose operands may be on two devices."""
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take indices on the CPU, too."""
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
"""Operations whose result, or its shape, the CPU waits for."""


class DeviceMismatch(RuntimeError):
    pass


class PretendGPU:
    """
    What is where, and what it cost.

    Attributes:
        transfers (`Counter`): bytes moved from one device to the other, by the line that moved them.
        moves (`Counter`): the number of these transfers, by line.
        waits (`Counter`): number of synchronisations, by line.
        peak (`int`): most bytes that were on the GPU at a time.
        memory (`int`): bytes that it says are free.
    """

    def __init__(self, memory: int = 2**40):
        self.memory = memory
        self.transfers, self.moves, self.waits, self.peak = Counter(), Counter(), Counter(), 0
        self.target = None  # where the result of the next operation is, if its caller says so
        self.inside = False  # whether a function of something on the GPU runs, which makes its own tensors there
        self._on_gpu = 0
        self._tags = {}  # A weak reference keeps the address of a storage from being used again.

    def device_of(self, tensor: Tensor) -> torch.device:
        if is_meta(tensor):
            return torch.device("meta")
        return self._tags.get(tensor.untyped_storage()._cdata, (None, CPU))[1]

    def place(self, tensor: Tensor, device: torch.device) -> None:
        """Says that the storage of a tensor is on a device."""
        storage = tensor.untyped_storage()
        reference, before = self._tags.get(storage._cdata, (None, CPU))
        self._tags[storage._cdata] = (reference or StorageWeakRef(storage), device)
        self._on_gpu += storage.nbytes() * ((device == CUDA) - (before == CUDA))
        if self._on_gpu > self.peak:
            self._forget_freed()
            self.peak = max(self.peak, self._on_gpu)

    def reset_peak(self) -> int:
        """Forgets the peak so far. Returns the bytes that are on the GPU."""
        self._forget_freed()
        self.peak = self._on_gpu
        return self.peak

    def _forget_freed(self):
        self._tags = {key: found for key, found in self._tags.items() if not found[0].expired()}
        storages = (
            torch.UntypedStorage._new_with_weak_ptr(each.cdata) for each, on in self._tags.values() if on == CUDA
        )
        self._on_gpu = sum(storage.nbytes() for storage in storages)

    def note_transfer(self, num_bytes: int) -> None:
        line = line_of_package()
        self.transfers[line] += num_bytes
        self.moves[line] += 1

    def note_wait(self) -> None:
        self.waits[line_of_package()] += 1


def is_meta(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return tensor.is_meta


def line_of_package() -> str:
    """Returns file, function and line of the package that are executed, or "elsewhere"."""
    frame = sys._getframe(1)
    while frame is not None:
        folder, found, file = frame.f_code.co_filename.rpartition("optimum_slicegpt/")
        if found and "site-packages" not in folder:
            return f"{file}:{frame.f_code.co_name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class Operations(TorchDispatchMode):
    """Checks the devices of an operation's operands, and says where its results are."""

    def __init__(self, gpu: PretendGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _run(self, func, args, kwargs):
        gpu, name = self.gpu, func._schema.name.partition("::")[2]
        target, gpu.target = gpu.target, None
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and not each.is_meta]
        devices = [gpu.device_of(each) for each in tensors]
        wide = {device for tensor, device in zip(tensors, devices, strict=True) if tensor.ndim}  # numbers may mix
        if len(wide) > 1 and target is None and name not in MIXING:
            if name not in INDEXING or devices[0] == CPU:
                shapes = [f"{tuple(each.shape)} on {on}" for each, on in zip(tensors, devices, strict=True)]
                raise DeviceMismatch(f"{func}: {', '.join(shapes)} at {line_of_package()}")
        if name == "copy_" and len(set(devices)) > 1:
            gpu.note_transfer(max(each.nbytes for each in tensors))
        if CUDA in devices:
            masked = name in INDEXING and any(each.dtype == torch.bool for each in tensors[1:])
            if name in WAITING or masked:
                gpu.note_wait()
            if name in INDEXING and CPU in devices[1:]:
                gpu.note_transfer(sum(each.nbytes for each, on in zip(tensors, devices, strict=True) if on == CPU))
        if kwargs.get("generator") is not None and CUDA in (target, *devices):
            raise DeviceMismatch(f"{func}: a generator on the CPU for a tensor on the GPU at {line_of_package()}")
        results = func(*args, **kwargs)
        storages = {each.untyped_storage()._cdata for each in tensors}
        here = target or next(iter(wide or devices), CUDA if gpu.inside else CPU)
        for each in tree_leaves(results):
            if isinstance(each, Tensor) and not each.is_meta:
                if each.untyped_storage()._cdata not in storages:  # Views are where their bases are.
                    gpu.place(each, here)
        return results


class Functions(TorchFunctionMode):
    """Answers questions about devices, and moves tensors from one to the other."""

    def __init__(self, gpu: PretendGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        gpu, kwargs = self.gpu, dict(kwargs or {})
        attribute = getattr(func, "__self__", None)  # of a property's `__get__`
        if attribute is Tensor.device:
            return gpu.device_of(args[0])
        if attribute in (Tensor.is_cuda, Tensor.is_cpu):
            return gpu.device_of(args[0]).type == attribute.__name__.removeprefix("is_")
        if func in (Tensor.numpy, Tensor.__array__) and gpu.device_of(args[0]) == CUDA:
            raise DeviceMismatch(f"A tensor on the GPU is no NumPy array at {line_of_package()}")
        if func is Tensor.tolist and gpu.device_of(args[0]) == CUDA:
            gpu.note_wait()
        if func is torch.histc and not args[0].is_floating_point():  # CUDA has it, the CPU has not
            return func(args[0].float(), *args[1:], **kwargs)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._to(func, *args, **kwargs)
        if kwargs.get("device") is None:
            gpu.inside = any(isinstance(each, Tensor) and gpu.device_of(each) == CUDA for each in args)
            return func(*args, **kwargs)
        gpu.target = plain_device(kwargs["device"])
        if gpu.target == CUDA:
            kwargs["device"] = CPU
        target, result = gpu.target, func(*args, **kwargs)
        gpu.target = None
        if isinstance(result, Tensor) and target.type != "meta":
            gpu.place(result, target)  # `torch.tensor` calls no operation that could be seen.
        return result

    def _to(self, func, tensor, *args, copy=False, non_blocking=False, **kwargs):
        kinds = {torch.dtype: "dtype", str: "device", torch.device: "device", int: "device", bool: "non_blocking"}
        given = {kinds.get(type(arg), "like"): arg for arg in args if arg is not None}
        given |= kwargs
        if "like" in given:
            given |= {"device": self.gpu.device_of(given["like"]), "dtype": given.pop("like").dtype}
        here = self.gpu.device_of(tensor)
        if func is not Tensor.to:
            given["device"] = CPU if func is Tensor.cpu else CUDA
        there, dtype = plain_device(given.get("device") or here), given.get("dtype") or tensor.dtype
        if torch.device("meta") in (here, there):
            return tensor.to(device=there, dtype=dtype)
        if here == there:
            return tensor.to(dtype=dtype, copy=copy)
        self.gpu.note_transfer(tensor.numel() * max(dtype.itemsize if here == CPU else 0, tensor.dtype.itemsize))
        if torch.is_grad_enabled() and tensor.requires_grad:
            return Transfer.apply(self.gpu, tensor, there, dtype)
        return transferred(self.gpu, tensor, there, dtype)


class Transfer(torch.autograd.Function):
    """A move from one device to the other, whose gradient moves back."""

    @staticmethod
    def forward(ctx, gpu, tensor, device, dtype):
        ctx.gpu, ctx.before = gpu, (gpu.device_of(tensor), tensor.dtype)
        return transferred(gpu, tensor, device, dtype)

    @staticmethod
    def backward(ctx, gradient):
        return None, transferred(ctx.gpu, gradient, *ctx.before), None, None


def transferred(gpu: PretendGPU, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    gpu.target = device
    try:
        with torch._C.DisableTorchFunction():
            return tensor.to(dtype=dtype, copy=True)
    finally:
        gpu.target = None


def plain_device(device) -> torch.device:
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return CUDA if device.type == "cuda" else device


@contextlib.contextmanager
def pretend_gpu(memory: int = 2**40):
    """Yields a [`PretendGPU`], which is there as long as the context lasts."""
    gpu = PretendGPU(memory)
    with pytest.MonkeyPatch.context() as patch, Operations(gpu), Functions(gpu):
        patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (gpu.memory, gpu.memory))
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        yield gpu


def in_loops(few: Counter, many: Counter) -> list[str]:
    """
    Returns the lines that are in a loop over batches.

    Args:
        few (`Counter`), many (`Counter`): events by line, of runs that are alike except that the second has at least
            three times as many batches.
    """
    return sorted(line for line, count in many.items() if count >= 2 * few[line])
