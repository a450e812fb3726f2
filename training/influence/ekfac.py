"""Curvature of a loss around a trained model, by EK-FAC: one Kronecker-factored block per layer.

The block of a layer is its part of the true Fisher matrix, whose labels are drawn from the model.
With x a layer's input, d the gradient of the log-likelihood at its output, and G the gradient of one
sequence's log-likelihood with respect to its weight,

    A = mean of x x^T over tokens             A = Q_A diag Q_A^T
    S = mean of d d^T over tokens             S = Q_S diag Q_S^T
    M = sum over sequences of w (Q_S^T G Q_A)^2, elementwise

    block @ V     = Q_S [ (Q_S^T V Q_A) * M ] Q_A^T
    block^-1 @ V  = Q_S [ (Q_S^T V Q_A) / (M + damping) ] Q_A^T

A and S only choose the basis; the second moments M, taken per sequence, carry the scale. It is made
in two passes over the same sequences with the same labels:

    covariances = Covariances()
    for batch in batches: covariances.add(flows(...), reach, weights)
    moments = SecondMoments(covariances.bases())
    for batch in batches: moments.add(flows(...), weights)
    curvature = moments.curvature(relative_damping=0.1)

Sums over parts of the data, made in several processes, are added with `merge`.
George et al. (2018), Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from training.influence.gradients import Flow, Flows, Weights, add

if TYPE_CHECKING:
    from torch import Tensor

# How a gradient is turned into a direction. `inverse` is the formula; `released` multiplies by the
# curvature instead, as the authors' code does; `identity` leaves the gradient as it is.
Variant = Literal["inverse", "released", "identity"]


@dataclass(frozen=True)
class Basis:
    """Eigenvectors, as columns: of the input covariance (in, in), of the gradients' (out, out)."""

    inputs: Tensor
    gradients: Tensor

    def rotate(self, weight: Tensor) -> Tensor:
        """A matrix (out, in) in this basis."""
        return self.gradients.T @ weight @ self.inputs

    def back(self, rotated: Tensor) -> Tensor:
        """A matrix in this basis as it was before."""
        return self.gradients @ rotated @ self.inputs.T


@dataclass
class Covariances:
    """First pass: the two covariances of each layer, as sums."""

    inputs: Weights = field(default_factory=dict)
    gradients: Weights = field(default_factory=dict)

    def add(self, passed: Flows, reach: Tensor, weights: Tensor) -> None:
        """Add a batch. `reach` (sequences, tokens) marks the tokens that the loss depends on.

        Other tokens, such as padding, have no effect. `weights` (sequences,) count a sequence so
        many times.
        """
        per_token = reach * weights[:, None]
        for name, flow in passed.items():
            # Heads between sequences and tokens repeat the tokens.
            scale = per_token.repeat(1, flow.inputs.shape[1] // per_token.shape[1])
            add(self.inputs, {name: _covariance(flow.inputs, scale)})
            add(self.gradients, {name: _covariance(flow.gradients, scale)})

    def merge(self, other: Covariances) -> None:
        """Add what another process summed over other sequences."""
        add(self.inputs, other.inputs)
        add(self.gradients, other.gradients)

    def bases(self) -> dict[str, Basis]:
        """The eigenvectors of every layer's covariances."""
        made = {}
        for name, covariance in self.inputs.items():
            made[name] = Basis(_eigenvectors(covariance), _eigenvectors(self.gradients[name]))
        return made


def _covariance(values: Tensor, scale: Tensor) -> Tensor:
    rows, scale = values.flatten(0, 1), scale.flatten()
    return (rows * scale[:, None]).T @ rows


def _eigenvectors(covariance: Tensor) -> Tensor:
    import torch

    _, vectors = torch.linalg.eigh(covariance.double())
    return vectors.float()


@dataclass
class SecondMoments:
    """Second pass: second moments of the sequences' gradients in the layers' bases, as sums."""

    bases: dict[str, Basis]
    sums: Weights = field(default_factory=dict)

    def add(self, passed: Flows, weights: Tensor) -> None:
        """Add a batch; `weights` (sequences,) count a sequence so many times."""
        for name, flow in passed.items():
            basis = self.bases[name]
            rotated = Flow(flow.inputs @ basis.inputs, flow.gradients @ basis.gradients)
            squares = rotated.per_sequence().square()
            add(self.sums, {name: (squares * weights[:, None, None]).sum(dim=0)})

    def merge(self, other: SecondMoments) -> None:
        """Add what another process summed over other sequences, in the same bases."""
        add(self.sums, other.sums)

    def curvature(self, relative_damping: float = 0.0, scale: float = 1.0) -> Curvature:
        """The curvature with every moment times `scale`.

        The damping of a layer is `relative_damping` times the mean of its moments: layers differ in
        scale by orders of magnitude.
        """
        blocks = {}
        for name, total in self.sums.items():
            moments = total * scale
            damping = relative_damping * float(moments.mean())
            blocks[name] = Block(self.bases[name], moments, damping)
        return Curvature(blocks)


@dataclass(frozen=True)
class Block:
    """The curvature of one layer: second moments (out, in) in a basis, and the damping of its
    inverse, in the moments' own unit."""

    basis: Basis
    moments: Tensor
    damping: float

    def multiply(self, weight: Tensor) -> Tensor:
        """The block, without damping, times a matrix (out, in)."""
        return self.basis.back(self.basis.rotate(weight) * self.moments)

    def solve(self, weight: Tensor) -> Tensor:
        """The damped block's inverse times a matrix (out, in).

        Raises ZeroDivisionError if the block is singular and not damped.
        """
        damped = self.moments + self.damping
        smallest = float(damped.min())
        if not smallest > 0:
            raise ZeroDivisionError(
                f"the curvature is singular (least damped eigenvalue {smallest:g}); "
                "give a damping above 0"
            )
        return self.basis.back(self.basis.rotate(weight) / damped)

    def released(self, weight: Tensor) -> Tensor:
        """What the authors' released code computes in place of `solve`.

        It divides by the reciprocal of the damped eigenvalue, and so multiplies by the curvature.
        """
        return self.basis.back(self.basis.rotate(weight) * (self.moments + self.damping))

    def dense(self) -> Tensor:
        """The block without damping as one matrix over the row-major entries of a weight."""
        import torch

        vectors = torch.kron(self.basis.gradients.contiguous(), self.basis.inputs.contiguous())
        return (vectors * self.moments.flatten()) @ vectors.T


@dataclass(frozen=True)
class Curvature:
    """All layers' blocks. Between layers the curvature is taken to be zero."""

    blocks: dict[str, Block]

    def apply(self, weights: Mapping[str, Tensor], variant: Variant = "inverse") -> Weights:
        """A gradient turned into a direction, layer by layer."""
        if variant == "identity":
            return dict(weights)
        turned = {}
        for name, value in weights.items():
            block = self.blocks[name]
            turned[name] = block.solve(value) if variant == "inverse" else block.released(value)
        return turned
