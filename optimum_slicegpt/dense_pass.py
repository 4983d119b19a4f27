"""The dense model, layer by layer: the stream at every site, its second moments, and those of the loss gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .assembly import placed
from .modeling.families import family_of
from .modeling.family import Family
from .rotation import add_second_moment_
from .signals import Signal, injected


@dataclass
class SiteMoments:
    """
    Second moments at every site of the dense model, of the stream as its readers see it: every token divided by its
    root mean square. Without that, the few tokens whose activations are massive would outweigh all others.

    Args:
        signal (`list[torch.Tensor]`): sums of xᵀx over tokens, `(D, D)`, float64.
        gradient (`list[torch.Tensor]`, *optional*): the same of the gradient of the loss with respect to x.
    """

    signal: list[Tensor]
    gradient: list[Tensor] | None


def layer_streams(layer: nn.Module, family: Family, hidden: Tensor, kwargs: dict) -> list[Tensor]:
    """
    The stream after each block of a dense layer, as the layer's own code has it: see [`at_site`].

    Args:
        layer (`nn.Module`): a decoder layer of the dense model.
        hidden (`torch.Tensor` of shape `(B, T, D)`): the stream before the layer.
        kwargs (`dict`): what the layer is called with.

    Returns:
        `list[torch.Tensor]`: one for every block.
    """
    streams = []
    hook = None
    if not family.parallel:  # then the second norm reads what the first block has added to
        norm = layer.get_submodule(family.mlp_norm)
        hook = norm.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    try:
        output = layer(hidden, **kwargs)
    finally:
        if hook is not None:
            hook.remove()
    return [*streams, output[0] if isinstance(output, tuple) else output]


def root_mean_square(stream: Tensor) -> Tensor:
    """Of every token `(..., D)`, as `(..., 1)` in float32 at least: what norms divide by, never 0."""
    if stream.dtype in (torch.float16, torch.bfloat16):
        stream = stream.float()
    return (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def at_site(streams: list[Tensor], family: Family, hidden: Tensor) -> list[Tensor]:
    """Streams, or gradients with respect to them, as `(B, T, D)`, centred where the family's norms would do that."""
    streams = [stream.view_as(hidden) for stream in streams]  # OPT's are flat where its second norm reads them
    return [stream - stream.mean(-1, keepdim=True) for stream in streams] if family.layer_norm else streams


def site_moments(
    model: PreTrainedModel,
    batches: list[dict[str, Tensor]],
    signals: list[Signal],
    device: torch.device,
    dtype: torch.dtype,
    gradients: bool,
    progress=iter,
) -> SiteMoments:
    """
    One pass over the dense model; with gradients, a backward pass that computes each layer once more.

    Args:
        model (`PreTrainedModel`): a dense causal language model, in evaluation mode.
        batches (`list[dict[str, torch.Tensor]]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`.
        signals (`list[Signal]`): the batches' stream at the first site.
        device (`torch.device`), dtype (`torch.dtype`): in which layers compute, one layer at a time.
        gradients (`bool`): whether to take the second moments of the gradient of the summed next-token loss, too.
        progress (callable, *optional*): wraps the list of steps.
    """
    family = family_of(model.config)
    layers = getattr(model.base_model.get_submodule(family.body), family.layers)
    size, blocks = model.config.hidden_size, len(family.blocks)

    def zeros():
        return [torch.zeros(size, size, dtype=torch.float64, device=device) for _ in range(blocks * len(layers) + 1)]

    signal, gradient = zeros(), zeros() if gradients else None

    def add_signal(site, each, stream):
        stream = each.tokens(stream)
        size = root_mean_square(stream)
        add_second_moment_(signal[site], stream / size)
        return size

    if not gradients:
        streams = [each.hidden for each in signals]
        for each in signals:
            add_signal(0, each, each.hidden.to(device))
        for index, layer in enumerate(progress(list(layers))):
            with placed(layer, device, dtype):
                for i, each in enumerate(signals):
                    hidden = streams[i].to(device)
                    after = at_site(layer_streams(layer, family, hidden, each.layer_kwargs[index]), family, hidden)
                    for block, stream in enumerate(after):
                        add_signal(index * blocks + block + 1, each, stream)
                    streams[i] = after[-1].to(each.hidden.device)
        return SiteMoments(signal, None)

    for batch, each in zip(progress(batches), signals, strict=True):
        inputs = [each.hidden.to(device)]
        sizes = [add_signal(0, each, inputs[0])]
        for index, layer in enumerate(layers):
            with placed(layer, device, dtype):
                after = layer_streams(layer, family, inputs[-1], each.layer_kwargs[index])
            after = at_site(after, family, inputs[-1])
            sizes += [add_signal(len(sizes) + block, each, stream) for block, stream in enumerate(after)]
            inputs.append(after[-1])
        slope = loss_gradient(model, batch, inputs.pop(), device, dtype)
        add_second_moment_(gradient[-1], each.tokens(slope) * sizes[-1])
        for index in reversed(range(len(layers))):
            with placed(layers[index], device, dtype), torch.enable_grad():
                start = inputs.pop().requires_grad_()
                after = layer_streams(layers[index], family, start, each.layer_kwargs[index])
                slopes = torch.autograd.grad(after[-1], [start, *after[:-1]], slope)
            slopes = at_site(slopes, family, start)
            for site, slope in enumerate(slopes, index * blocks):
                add_second_moment_(gradient[site], each.tokens(slope) * sizes[site])
            slope = slopes[0]
    return SiteMoments(signal, gradient)


def loss_gradient(model, batch, hidden, device, dtype):
    """Gradient `(B, T, D)` of the summed next-token loss with respect to the stream at the last site."""
    slopes = []
    for row, stream in enumerate(hidden.detach().split(1)):  # the logits of one sequence are large enough
        inputs = {key: value[row : row + 1].to(model.device) for key, value in batch.items()}
        targets = inputs["input_ids"][:, 1:].clone()
        if "attention_mask" in inputs:
            targets[~inputs["attention_mask"][:, 1:].bool()] = -100
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            stream.requires_grad_()
            with injected(model, stream.to(model.device, model.dtype)):
                logits = model(**inputs, use_cache=False).logits[0, :-1].float()
            loss = nn.functional.cross_entropy(logits, targets[0], reduction="sum")
            slopes += torch.autograd.grad(loss, stream)
    return torch.cat(slopes)
