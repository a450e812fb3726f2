"""Small networks whose curvature can be written down exactly."""

import itertools

import torch
from torch import nn

from training.influence.ekfac import Covariances, SecondMoments
from training.influence.gradients import flows, trained_layers


def stack(sizes, activation=None, bias=False, seed=0):
    """Linear layers of these sizes, with an activation between them."""
    torch.manual_seed(seed)
    parts = []
    for number, (wide, out) in enumerate(itertools.pairwise(sizes)):
        if number and activation:
            parts.append(activation())
        parts.append(nn.Linear(wide, out, bias=bias))
    return nn.Sequential(*parts)


def fitted(model, batches, loss, damping=0.0):
    """The EK-FAC curvature of a model, as a mean over sequences.

    `batches` are (inputs, reach, ...) and `loss(outputs, batch)` a sum over the batch.
    """
    layers = trained_layers(model)
    covariances, count = Covariances(), 0
    for batch in batches:
        count += len(batch[0])
        covariances.add(passed(model, layers, batch, loss), batch[1], torch.ones(len(batch[0])))
    moments = SecondMoments(covariances.bases())
    for batch in batches:
        moments.add(passed(model, layers, batch, loss), torch.ones(len(batch[0])))
    return moments.curvature(damping, scale=1 / count)


def passed(model, layers, batch, loss):
    return flows(layers, lambda: loss(model(batch[0]), batch))


def cosine(one, other):
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def joined(weights):
    """The gradients of all layers as one vector."""
    return torch.cat([value.flatten() for value in weights.values()])
