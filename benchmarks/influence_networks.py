"""Small networks whose curvature can be written down exactly, and how near EK-FAC comes to it."""

import itertools

import torch
from torch import nn

from training.influence.ekfac import Block, Covariances, Curvature, SecondMoments
from training.influence.gradients import flows, trained_layers, weighted_sums

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
# (activation, layer sizes) of the non-linear family.
FAMILY = [(name, sizes) for name in ACTIVATIONS for sizes in ((6, 8, 5), (6, 8, 8, 5))]
# Inputs of the family differ in scale, as features of real networks do.
SCALES = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3, 0.2])
ROWS, DRAWS = 150, 20


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
    sequences, tokens = batch[0].shape[:2]
    return flows(layers, lambda: loss(model(batch[0]), batch), (sequences, tokens))


def cosine(one, other):
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def joined(weights):
    """The gradients of all layers as one vector."""
    return torch.cat([value.flatten() for value in weights.values()])


def drawn_classes(logits, batch):
    """Cross-entropy with the classes that the batch holds."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[2].flatten(), reduction="sum")


def classified_at(model, inputs, seed):
    """The same inputs with classes drawn anew."""
    torch.manual_seed(seed)
    probabilities = torch.softmax(model(inputs), dim=-1).detach()
    classes = torch.multinomial(probabilities.flatten(0, 1), 1).view(len(inputs), 1)
    return [(inputs, torch.ones(len(inputs), 1), classes)]


def exact_solution(model, inputs, gradient, damping):
    """(Fisher of all weights + damping)^-1 gradient, with the expectation over labels exact."""
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    fisher = torch.zeros(size, size, dtype=torch.float64)
    for row in inputs:
        logits = model(row[None])[0, 0]
        probabilities = torch.softmax(logits, dim=-1).detach()
        for label, probability in enumerate(probabilities):
            score = torch.log_softmax(logits, dim=-1)[label]
            parts = torch.autograd.grad(score, parameters, retain_graph=True)
            vector = torch.cat([part.flatten() for part in parts]).double()
            fisher += float(probability) * torch.outer(vector, vector)
    fisher /= len(inputs)
    damped = fisher + damping * torch.eye(size)
    return torch.linalg.solve(damped, joined(gradient).double())


def dense_error(block):
    """Largest relative error of the block's inverse product against its matrix written out."""
    vector = torch.randn(block.moments.shape, generator=torch.Generator().manual_seed(1)).double()
    dense = block.dense().double()
    exact = torch.linalg.solve(dense + block.damping * torch.eye(len(dense)), vector.flatten())
    found = block.solve(vector.float()).flatten().double()
    return float((found - exact).norm() / exact.norm())


def deep_linear_cosines(sequences=20_000):
    """Layer -> cosine with the exact inverse of its block, for two linear layers in a row.

    With squared error and one token a sequence, inputs and output gradients are independent, so
    the Kronecker product is exact. The little damping is what its singular part needs.
    """
    model = stack([5, 4, 3], seed=2)
    torch.manual_seed(3)
    inputs = torch.randn(sequences, 1, 5) @ torch.randn(5, 5)
    # Labels drawn from the model: its output plus standard normal noise.
    noise = torch.randn(sequences, 1, 3)

    def squared(outputs, batch):
        return 0.5 * (outputs - outputs.detach() - batch[2]).square().sum()

    curvature = fitted(model, [(inputs, torch.ones(sequences, 1), noise)], squared)
    seen = {"0": inputs[:, 0], "1": inputs[:, 0] @ model[0].weight.T}
    backward = {"0": model[1].weight.T @ model[1].weight, "1": torch.eye(3)}
    found = {}
    for name in trained_layers(model):
        x = seen[name].detach().double()
        exact = torch.kron(backward[name].detach().double(), x.T @ x / len(x))
        damping = 1e-3 * float(exact.diagonal().mean())
        block = curvature.blocks[name]
        vector = torch.randn(block.moments.shape).double()
        solved = torch.linalg.solve(exact + damping * torch.eye(len(exact)), vector.flatten())
        damped = Block(block.basis, block.moments, damping)
        found[name] = cosine(damped.solve(vector.float()), solved.float())
    return found


def family_cosines(name, sizes):
    """Variant -> cosine of its direction with the exact damped inverse times the same gradient.

    The exact Fisher is over all weights of a network of the family, with the expectation over
    labels written out; the damping is 1 % of the mean second moment.
    """
    model = stack(sizes, ACTIVATIONS[name], seed=4)
    torch.manual_seed(5)
    inputs = torch.randn(ROWS, 1, len(SCALES)) * SCALES
    batches = []
    for draw in range(DRAWS):
        batches += classified_at(model, inputs, seed=draw)
    curvature = fitted(model, batches, drawn_classes)
    means = [block.moments.mean() for block in curvature.blocks.values()]
    damping = 1e-2 * float(torch.stack(means).mean())
    blocks = {n: Block(b.basis, b.moments, damping) for n, b in curvature.blocks.items()}
    target = (inputs[:30], torch.ones(30, 1), torch.randint(5, (30, 1)))
    gradient = weighted_sums(
        passed(model, trained_layers(model), target, drawn_classes), torch.ones(30)
    )
    exact = exact_solution(model, inputs, gradient, damping).float()
    found = {}
    for variant in ("inverse", "identity", "released"):
        found[variant] = cosine(joined(Curvature(blocks).apply(gradient, variant)), exact)
    return found
