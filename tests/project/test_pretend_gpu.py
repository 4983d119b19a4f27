"""The pretend GPU catches what a GPU would not take, and counts what costs time there."""

from collections import Counter

import pytest
import torch
from pretend_gpu import DeviceMismatch, in_loops, pretend_gpu

from optimum_slicegpt.linalg.composition import compose
from optimum_slicegpt.modeling.contexts import placed


@pytest.fixture
def gpu():
    with pretend_gpu() as gpu:
        yield gpu


def host(*shape):
    return torch.arange(torch.Size(shape).numel()).float().view(shape)


FAULTS = {
    "operands on two devices": lambda x: x + host(4, 3),
    "a product of two devices": lambda x: x @ host(3, 2),
    "a factory without a device": lambda x: x * torch.ones(3),
    "a factory of a meta tensor": lambda x: x + torch.empty_like(x, device="cpu"),
    "an index on the GPU": lambda x: host(4, 3)[x[:, 0].long()],
    "an output on another device": lambda x: torch.mul(x, x, out=host(4, 3)),
    "numpy": lambda x: x.numpy(),
    "a generator on the CPU": lambda x: x.normal_(generator=torch.Generator()),
    "another generator on the CPU": lambda x: torch.rand(3, generator=torch.Generator(), device="cuda"),
    "a module that was left behind": lambda x: torch.nn.Linear(3, 2)(x),
    "a view of a tensor on the CPU": lambda x: x[:2] - host(4, 3)[2:],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(gpu, fault):
    with pytest.raises(DeviceMismatch):
        FAULTS[fault](host(4, 3).to("cuda"))


SOUND = {
    "a number": lambda x: x * torch.tensor(2.0),
    "an index on the CPU": lambda x: x[torch.tensor([2, 0])],
    "a view": lambda x: x.T[1:] + x[:, 1:].T,
    "a new tensor": lambda x: x + x.new_ones(3) + torch.zeros_like(x),
    "a factory": lambda x: x + torch.ones(3, device=x.device),
    "python's numbers": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device="cuda"),
    "a module": lambda x: torch.nn.Linear(3, 2).to("cuda")(x),
    "a copy": lambda x: torch.empty(4, 3, device="cuda").copy_(host(4, 3)) + x,
    "like another": lambda x: x + host(4, 3).double().to(x),
}


@torch.no_grad()
@pytest.mark.parametrize("operation", SOUND)
def test_what_a_gpu_takes_is_taken(gpu, operation):
    torch.manual_seed(0)
    found = SOUND[operation](host(4, 3).to("cuda"))
    assert found.device == torch.device("cuda", 0) and found.is_cuda and not found.is_cpu
    torch.manual_seed(0)
    assert torch.equal(found.cpu(), SOUND[operation](host(4, 3).cuda()).to("cpu"))
    assert found.cpu().device == torch.device("cpu")


WAITS = {
    "a number": lambda x: x.sum().item(),
    "a condition": lambda x: bool(x[0, 0] > 0),
    "a list": lambda x: x.tolist(),
    "a mask": lambda x: x[x > 2],
    "a mask that is filled": lambda x: x.__setitem__(x > 2, 0.0),
    "places": lambda x: x.nonzero(),
    "equality": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("operation", WAITS)
def test_what_the_cpu_waits_for_is_counted(gpu, operation):
    x = host(4, 3).to("cuda")
    before = gpu.waits.total()
    WAITS[operation](host(4, 3))
    assert gpu.waits.total() == before
    WAITS[operation](x)
    assert gpu.waits.total() == before + 1


def test_transfers_are_counted_where_the_package_asks_for_them(gpu):
    rows = host(4, 3)
    compose(rows, torch.eye(3, dtype=torch.float64, device="cuda"), torch.float32)
    ((line, size),) = gpu.transfers.items()
    assert line.startswith("linalg/composition.py:moved:") and size == rows.nbytes and gpu.moves[line] == 1


def test_gradients_move_back(gpu):
    x = host(4, 3).requires_grad_()
    (x.to("cuda") ** 2).sum().backward()
    assert x.grad.device.type == "cpu" and torch.equal(x.grad, 2 * x.detach())


def test_the_peak_is_of_what_is_there_at_a_time(gpu):
    for _ in range(3):
        torch.zeros(1000, device="cuda", dtype=torch.float64)
    assert 8000 <= gpu.peak <= 16000


@torch.no_grad()
def test_a_module_is_on_the_gpu_as_long_as_it_is_placed_there(gpu):
    module = torch.nn.BatchNorm1d(3).eval()  # has buffers
    with placed(module, torch.device("cuda"), torch.float32):
        assert {each.device.type for each in module.state_dict().values()} == {"cuda"}
        assert module(host(4, 3).to("cuda")).is_cuda
    assert {each.device.type for each in module.state_dict().values()} == {"cpu"}
    with pytest.raises(DeviceMismatch):
        module(host(4, 3).to("cuda"))


def test_lines_in_loops_are_those_whose_events_grow_with_the_batches():
    few, many = Counter(loop=2, search=9, once=1), Counter(loop=6, search=11, once=1, only_many=1)
    assert in_loops(few, many) == ["loop", "only_many"]
