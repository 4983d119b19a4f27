"""The loss that learns from a teacher, against the formula, and who can be one."""

import pytest
import torch
import torch.nn.functional as F
from tiny import build, calibration, paper
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_slicegpt import RecoveryConfig
from optimum_slicegpt.recovery import distillation
from optimum_slicegpt.recovery.distillation import distillation_loss
from optimum_slicegpt.recovery.teacher import find_teacher
from optimum_slicegpt.recovery.trainer import sum_losses


CPU = torch.device("cpu")
DISTILL = RecoveryConfig()


def sliced(**kwargs):
    return build("llama", torch.float32, **kwargs).compress(paper(sparsity=0.3, dataset=calibration()))


def example():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 9, 13, generator=generator, dtype=torch.float64).float() for _ in range(2))
    labels = torch.randint(13, (2, 9), generator=generator)
    labels[0, 3:6] = -100
    return student.requires_grad_(), teacher, labels


def by_hand(student, teacher, labels, temperature, weight):
    """Computes the loss position by position, token by token."""
    total = 0
    for row in range(2):
        for position in range(8):
            label = labels[row, position + 1]
            if label == -100:
                continue
            q, p = (logits[row, position].double().div(temperature).exp() for logits in (student, teacher))
            q, p = q / q.sum(), p / p.sum()
            divergence = sum(p[token] * (p[token].log() - q[token].log()) for token in range(13))
            logits = student[row, position].double()
            cross_entropy = logits.exp().sum().log() - logits[label]
            total = total + (1 - weight) * cross_entropy + weight * temperature**2 * divergence
    return total


@pytest.mark.parametrize("temperature, weight", [(1.0, 0.5), (2.0, 0.7), (3.0, 1.0), (1.5, 0.0)])
@pytest.mark.parametrize("positions", [256, 3, 0])
def test_loss_and_gradient_are_those_of_the_formula(temperature, weight, positions, monkeypatch):
    monkeypatch.setattr(distillation, "LOGITS_AT_ONCE", 2 * 13 * positions)
    student, teacher, labels = example()
    loss = distillation_loss(student, teacher, labels, temperature=temperature, weight=weight)
    expected = by_hand(student, teacher, labels, temperature, weight)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_without_a_teachers_weight_it_is_the_loss_of_transformers():
    student, teacher, labels = example()
    expected = F.cross_entropy(student[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(distillation_loss(student, teacher, labels, weight=0.0), expected)


def test_the_teacher_may_be_in_half_precision():
    student, teacher, labels = example()
    half = teacher.bfloat16()
    loss = distillation_loss(student, half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student, half.float(), labels))


@pytest.mark.parametrize("weight", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("positions", [256, 3])
def test_the_gradient_of_logits_in_half_precision_is_rounded_once(weight, positions, monkeypatch):
    monkeypatch.setattr(distillation, "LOGITS_AT_ONCE", 2 * 13 * positions)
    student, teacher, labels = example()
    half = student.detach().bfloat16().requires_grad_()
    exact = half.detach().float().requires_grad_()
    losses = [distillation_loss(each, teacher, labels, temperature=2.0, weight=weight) for each in (half, exact)]
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)
    gradients = [torch.autograd.grad(loss, each)[0] for loss, each in zip(losses, (half, exact), strict=True)]
    assert torch.equal(gradients[0], gradients[1].bfloat16())
    expected = torch.autograd.grad(by_hand(exact, teacher, labels, 2.0, weight), exact)[0]
    torch.testing.assert_close(gradients[0].float(), expected, rtol=2**-8, atol=1e-6)


def test_the_gradient_is_scaled_as_the_loss_is():
    student, teacher, labels = example()
    loss = distillation_loss(student, teacher, labels, weight=0.4)
    whole, part = (torch.autograd.grad(value, student, retain_graph=True)[0] for value in (loss, loss / 7 * 2))
    torch.testing.assert_close(part, whole / 7 * 2)
    assert not whole[:, -1].any() and not whole[:, :-1][labels[:, 1:] == -100].any()


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_what_is_measured_is_what_is_trained(weight, monkeypatch):
    monkeypatch.setattr(distillation, "LOGITS_AT_ONCE", 3 * 2 * 13)
    student, teacher, labels = example()
    trained, entropy, counts = sum_losses(student.detach(), teacher, labels, 2.0, weight).T
    expected = distillation_loss(student, teacher, labels, temperature=2.0, weight=weight)
    torch.testing.assert_close(trained.sum(), expected)
    torch.testing.assert_close(entropy.sum(), distillation_loss(student, teacher, labels, weight=0.0))
    assert counts.tolist() == (labels[:, 1:] != -100).sum(1).tolist()


def test_without_a_teacher_the_cross_entropy_is_measured():
    student, teacher, labels = example()
    trained, entropy, _ = sum_losses(student.detach(), None, labels, 2.0, 0.0).T
    assert torch.equal(trained, entropy)
    torch.testing.assert_close(entropy.sum(), distillation_loss(student, teacher, labels, weight=0.0))


def test_the_gradient_is_all_that_is_kept_for_the_backward_pass():
    kept = []
    student, teacher = (torch.randn(1, 513, 100) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        distillation_loss(student.requires_grad_(), teacher, torch.randint(100, (1, 513)))
    assert [tensor.shape for tensor in kept] == [student.shape]


# Teachers


def test_a_loaded_teacher_is_taken_as_it_is():
    teacher = build("llama")
    assert find_teacher(teacher, sliced(), DISTILL, CPU) is teacher
    assert teacher.dtype == torch.float64


def test_a_teacher_by_name_is_loaded_in_the_dtype_asked_for(tmp_path):
    build("llama", torch.float32).save_pretrained(tmp_path)
    assert find_teacher(tmp_path, sliced(), DISTILL, CPU).dtype == torch.bfloat16
    config = RecoveryConfig(teacher_dtype="float32", teacher_device="meta")
    teacher = find_teacher(str(tmp_path), sliced(), config, CPU)
    assert (teacher.dtype, teacher.device.type) == (torch.float32, "meta")


def test_the_teacher_is_by_default_the_model_on_the_hub_that_was_sliced(monkeypatch):
    student, asked = sliced(), []
    student.config.slicegpt["base_model"] = "org/base"
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name: asked.append(name) or student.config)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name, dtype: asked.append(name) or student)
    find_teacher(None, student, DISTILL, CPU)
    assert asked == ["org/base", "org/base"]


def test_no_teacher_is_known():
    student = sliced()
    with pytest.raises(ValueError, match="names none on the Hub. Give teacher= .* or set distill=False"):
        find_teacher(None, student, DISTILL, CPU)
    student.config.slicegpt["base_model"] = "tiny"
    with pytest.raises(ValueError, match=r"on the Hub: it was sliced from 'tiny'\. Give teacher="):
        find_teacher(None, student, DISTILL, CPU)


@pytest.mark.parametrize("name", ["models--evil--model/snapshots/0", "models--{}--evil--model/snapshots/0"])
def test_no_record_has_a_folder_loaded(name, tmp_path, monkeypatch):
    build("llama", torch.float32).save_pretrained(tmp_path / "evil" / "model")
    monkeypatch.chdir(tmp_path)
    student = sliced()
    student.config.slicegpt["base_model"] = name.format(str(tmp_path).replace("/", "--"))
    with pytest.raises(ValueError, match="names none on the Hub"):
        find_teacher(None, student, DISTILL, CPU)


@pytest.mark.parametrize("by_record", [True, False])
def test_a_teacher_that_is_not_there(by_record, tmp_path):
    student, name = sliced(), "org/absent" if by_record else str(tmp_path / "absent")
    student.config.slicegpt["base_model"] = name
    message = "The dense model '.*absent' cannot be loaded. Give teacher= .* or set distill=False"
    with pytest.raises(FileNotFoundError, match=message):
        find_teacher(None if by_record else name, student, DISTILL, CPU)


def test_a_teacher_that_is_not_asked():
    with pytest.raises(
        ValueError, match=r"A teacher is given \(--teacher\) and distill=False \(--no-distill\); leave out one"
    ):
        find_teacher(build("llama"), sliced(), RecoveryConfig(distill=False), CPU)


@pytest.mark.parametrize("by_name", [True, False])
def test_another_vocabulary(by_name, tmp_path, monkeypatch):
    teacher = build("llama", torch.float32, vocab_size=98)
    if by_name:
        teacher.save_pretrained(tmp_path)
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # no weights are read
    with pytest.raises(ValueError, match="The teacher has a vocabulary of 98 tokens and the model one of 97"):
        find_teacher(str(tmp_path) if by_name else teacher, sliced(), DISTILL, CPU)
