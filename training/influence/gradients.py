"""What passes through the trained layers of a model: inputs, and gradients of a loss at the outputs.

A linear layer computes y = W x for every token. The gradient of a sequence's loss with respect to W
is the sum over its tokens of (dL/dy) x^T. Everything that influence functions need follows from
the two factors, so that no gradient of the weights is ever stored per sequence:

    flow.per_sequence()     (sequences, out, in)     the gradients themselves
    flow.along(V)           (sequences, n)           their inner products with n matrices V

A layer with a trained bias sees a constant input 1 behind its others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

Layers = dict[str, "nn.Linear"]
# Layer -> a matrix of the layer's shape (out, in), one column more with a bias.
Weights = dict[str, "Tensor"]


@dataclass(frozen=True)
class Flow:
    """One layer's inputs (sequences, tokens, in) and output gradients (sequences, tokens, out)."""

    inputs: Tensor
    gradients: Tensor

    def per_sequence(self) -> Tensor:
        """The weight gradient of each sequence, shape (sequences, out, in)."""
        return self.gradients.transpose(1, 2) @ self.inputs

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """The sum of the sequences' weight gradients, each times its weight: (out, in)."""
        scaled = self.gradients * weights[:, None, None]
        return scaled.flatten(0, 1).T @ self.inputs.flatten(0, 1)

    def along(self, directions: Tensor) -> Tensor:
        """Inner products of the sequences' gradients with matrices (n, out, in): (sequences, n)."""
        return self.per_sequence().flatten(1) @ directions.flatten(1).T


Flows = dict[str, Flow]


def trained_layers(model: nn.Module) -> Layers:
    """The linear layers whose weights are trained, by name, in the model's order.

    These are the two matrices of each LoRA, or all linear layers of full fine-tuning. The output
    head is left out: its curvature is as wide as the vocabulary. Raises ValueError if there is none.
    """
    from torch import nn

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers: Layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and module.weight.requires_grad:
            layers[name] = module
    if not layers:
        raise ValueError("no linear layer of the model is trained, so it has no curvature")
    return layers


def flows(
    layers: Mapping[str, nn.Linear], loss: Callable[[], Tensor], shape: tuple[int, int]
) -> Flows:
    """Run `loss` once and return what passed through each layer on the way.

    `loss` is a sum over sequences, so that one sequence's gradient does not depend on which others
    share its batch; `shape` is how many sequences and tokens it reads. Layers may fold both into one
    axis, as OPT's do, or have heads between them, as DeepSeek's do: these count as more tokens.
    Raises UsageError if a layer runs twice, not at all, or on anything else, as experts do:
    sequences could not be told apart.
    """
    import torch

    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            (value,) = given
            if name in inputs:
                raise _unreadable(name, "runs more than once in a pass")
            if not _told_apart(value, shape):
                raise _unreadable(
                    name, f"reads {tuple(value.shape)} where {shape} are sequences and tokens"
                )
            inputs[name], outputs[name] = value.detach(), output

        return keep

    hooks = [layer.register_forward_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        total = loss()
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in layers if name not in outputs]
    if missing:
        raise _unreadable(missing[0], "did not take part in the loss")
    gradients = torch.autograd.grad(total, [outputs[name] for name in layers])
    passed: Flows = {}
    for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
        value = _by_sequence(inputs[name], shape)
        if layer.bias is not None and layer.bias.requires_grad:
            value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        passed[name] = Flow(value, _by_sequence(gradient.detach(), shape))
    return passed


def _told_apart(value: Tensor, shape: tuple[int, int]) -> bool:
    """Whether a layer's input has the tokens of each sequence together."""
    sequences, tokens = shape
    folded = value.dim() == 2 and len(value) == sequences * tokens
    apart = value.dim() > 2 and (value.shape[0], value.shape[-2]) == shape
    return folded or apart


def _by_sequence(value: Tensor, shape: tuple[int, int]) -> Tensor:
    """As (sequences, tokens, features), in float32."""
    return value.float().reshape(shape[0], -1, value.shape[-1])


def _unreadable(layer: str, why: str) -> UsageError:
    return UsageError(
        f"influence: layer {layer} {why}; this architecture's curvature cannot be estimated, "
        "take influence out of the config"
    )


def weighted_sums(passed: Mapping[str, Flow], weights: Tensor) -> Weights:
    """The weighted sum of the sequences' gradients, by layer."""
    return {name: flow.weighted_sum(weights) for name, flow in passed.items()}


def add(total: Weights, more: Mapping[str, Tensor]) -> None:
    """Add gradients to a running sum, layer by layer."""
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value


def stacked(directions: Iterable[Mapping[str, Tensor]]) -> Weights:
    """Several directions as one: layer -> (n, out, in)."""
    import torch

    parts: dict[str, list[Tensor]] = {}
    for direction in directions:
        for name, value in direction.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in parts.items()}


def along(passed: Mapping[str, Flow], directions: Mapping[str, Tensor]) -> Tensor:
    """Inner products of each sequence's gradient with stacked directions, over all layers.

    Shape (sequences, n).
    """
    import torch

    parts = [flow.along(directions[name]) for name, flow in passed.items()]
    return torch.stack(parts).sum(dim=0)


def inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The inner product of two gradients, over all layers."""
    total = 0.0
    for name, value in one.items():
        total += float((value.double() * other[name].double()).sum())
    return total
