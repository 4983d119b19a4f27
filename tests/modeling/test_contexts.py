"""What changes a model for a computation leaves it as it was."""

import pytest
import torch
from interruptions import Fault
from tiny import build, tokens
from torch import nn

from optimum_slicegpt.modeling.contexts import evaluating, layers_replaced, placed
from optimum_slicegpt.modeling.decoder import Decoder


@pytest.mark.parametrize("at", range(1, 6))
def test_a_module_that_does_not_fit_keeps_its_tensors(at):
    module = nn.BatchNorm1d(3)
    before = [(each.data_ptr(), each.dtype) for each in module.state_dict(keep_vars=True).values()]
    with pytest.raises(torch.OutOfMemoryError), Fault(at), placed(module, torch.device("cpu"), torch.float64):
        for each in module.state_dict().values():
            each + 1
    assert [(each.data_ptr(), each.dtype) for each in module.state_dict(keep_vars=True).values()] == before


def test_layers_keep_forwards_that_somebody_else_has_set():
    model = build("llama")
    first, second = Decoder(model).layers
    forward, calls = first.forward, []
    first.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    patched = first.forward
    with layers_replaced(Decoder(model), lambda stream, **kwargs: stream):
        model(tokens())
    assert first.forward is patched and "forward" not in vars(second) and not calls
    model(tokens())
    assert calls


def test_outputs_are_logits_alone_while_a_model_is_evaluated():
    model = build("mixtral", output_router_logits=True, output_hidden_states=True, return_dict=False)
    with torch.no_grad(), evaluating(model):
        assert list(model(tokens(), use_cache=False).keys()) == ["logits"]
    assert model.config.output_router_logits and model.config.output_hidden_states and not model.config.return_dict
