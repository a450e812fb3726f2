"""EK-FAC against matrices that are written out, and what has no effect on it."""

import pytest
import torch
from torch import nn

from benchmarks.influence_networks import (
    FAMILY,
    cosine,
    deep_linear_cosines,
    dense_error,
    drawn_classes,
    family_cosines,
    fitted,
    passed,
    stack,
)
from mosaic.core.errors import UsageError
from training.influence.ekfac import Basis, Block, Covariances, SecondMoments
from training.influence.gradients import flows, trained_layers


def classified(model, sequences=64, tokens=3, seed=1, parts=1):
    """Batches of random inputs with classes drawn from the model."""
    torch.manual_seed(seed)
    inputs = torch.randn(sequences, tokens, model[0].in_features)
    probabilities = torch.softmax(model(inputs), dim=-1).detach()
    classes = torch.multinomial(probabilities.flatten(0, 1), 1).view(sequences, tokens)
    reach = torch.ones(sequences, tokens)
    size = sequences // parts
    made = []
    for start in range(0, sequences, size):
        end = start + size
        made.append((inputs[start:end], reach[start:end], classes[start:end]))
    return made


@pytest.fixture
def small():
    return stack([4, 5, 3], nn.Tanh, bias=True)


@pytest.fixture
def block(small):
    return fitted(small, classified(small), drawn_classes, damping=0.3).blocks["2"]


def test_inverse_products_are_those_of_the_block_written_out_as_one_matrix(block):
    assert dense_error(block) < 1e-4
    vector = torch.randn(block.moments.shape)
    product = block.dense() @ vector.flatten()
    assert torch.allclose(block.multiply(vector).flatten(), product, atol=1e-5)


def test_the_written_out_block_has_the_moments_on_its_diagonal_in_the_basis(block):
    # Assembled entry by entry, without the Kronecker product of the code.
    out, wide = block.moments.shape
    assembled = torch.zeros(out * wide, out * wide)
    for row in range(out):
        for column in range(wide):
            vector = torch.outer(block.basis.gradients[:, row], block.basis.inputs[:, column])
            assembled += block.moments[row, column] * torch.outer(
                vector.flatten(), vector.flatten()
            )
    assert torch.allclose(assembled, block.dense(), atol=1e-5)


def test_the_block_undoes_its_inverse_without_damping(small):
    curvature = fitted(small, classified(small, sequences=512), drawn_classes)
    for block in curvature.blocks.values():
        # The mean of a softmax's gradients is zero in one direction, where the block is singular.
        block = Block(block.basis, block.moments + 1e-3, 0.0)
        vector = torch.randn(block.moments.shape)
        assert torch.allclose(block.multiply(block.solve(vector)), vector, atol=1e-3)


def test_the_inverse_is_symmetric(block):
    one, other = torch.randn(2, *block.moments.shape)
    left, right = (one * block.solve(other)).sum(), (other * block.solve(one)).sum()
    assert torch.allclose(left, right, rtol=1e-4)


def test_a_singular_block_needs_damping():
    basis = Basis(torch.eye(2), torch.eye(2))
    flat = Block(basis, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), damping=0.0)
    with pytest.raises(ZeroDivisionError, match="damping above 0"):
        flat.solve(torch.ones(2, 2))
    assert torch.isfinite(Block(basis, flat.moments, 0.1).solve(torch.ones(2, 2))).all()


def test_much_damping_leaves_the_direction_of_the_gradient(block):
    vector = torch.randn(block.moments.shape)
    heavy = Block(block.basis, block.moments, damping=1e6)
    assert cosine(heavy.solve(vector), vector) > 0.99999


def test_the_corrected_diagonal_is_nearer_to_the_empirical_fisher_than_plain_kfac(small):
    batches = classified(small, sequences=256)
    block = fitted(small, batches, drawn_classes).blocks["2"]
    flow = passed(small, trained_layers(small), batches[0], drawn_classes)["2"]
    gradients = flow.per_sequence().flatten(1)
    empirical = gradients.T @ gradients / len(gradients)
    rows_in = flow.inputs.flatten(0, 1) @ block.basis.inputs
    rows_out = flow.gradients.flatten(0, 1) @ block.basis.gradients
    tokens = flow.inputs.shape[1]
    product = torch.outer(rows_out.square().mean(0), rows_in.square().mean(0)) * tokens
    kfac = Block(block.basis, product, 0.0)
    error, kfac_error = (block.dense() - empirical).norm(), (kfac.dense() - empirical).norm()
    assert error < kfac_error


def test_moments_are_those_of_sequences_and_not_of_their_tokens(small):
    """Two tokens of a sequence that cancel leave no curvature, however large each is."""
    layers = trained_layers(small)
    batch = (torch.randn(8, 1, 4).repeat(1, 2, 1), torch.ones(8, 2))

    def opposite(outputs, batch):
        return (outputs[:, 0] - outputs[:, 1]).sum()

    covariances = Covariances()
    covariances.add(passed(small, layers, batch, opposite), batch[1], torch.ones(8))
    moments = SecondMoments(covariances.bases())
    moments.add(passed(small, layers, batch, opposite), torch.ones(8))
    for total in moments.sums.values():
        assert total.abs().max() < 1e-9


@pytest.mark.parametrize("parts", [2, 4, 32])
def test_the_batch_size_changes_nothing(small, parts):
    whole = fitted(small, classified(small), drawn_classes)
    batched = fitted(small, classified(small, parts=parts), drawn_classes)
    for name, block in whole.blocks.items():
        assert torch.allclose(block.dense(), batched.blocks[name].dense(), atol=1e-4)


def test_two_processes_with_half_the_data_each_give_what_one_gives(small):
    batches = classified(small, parts=4)
    layers, ones = trained_layers(small), torch.ones(16)
    halves = [Covariances(), Covariances()]
    for number, batch in enumerate(batches):
        halves[number % 2].add(passed(small, layers, batch, drawn_classes), batch[1], ones)
    halves[0].merge(halves[1])
    bases = halves[0].bases()
    moments = [SecondMoments(bases), SecondMoments(bases)]
    for number, batch in enumerate(batches):
        moments[number % 2].add(passed(small, layers, batch, drawn_classes), ones)
    moments[0].merge(moments[1])
    apart = moments[0].curvature(scale=1 / 64)
    whole = fitted(small, batches, drawn_classes)
    for name, block in whole.blocks.items():
        assert torch.allclose(block.dense(), apart.blocks[name].dense(), atol=1e-4)


def test_a_weight_counts_a_sequence_so_many_times(small):
    (batch,) = classified(small, sequences=4)
    layers = trained_layers(small)
    twice = tuple(torch.cat([part, part[:1]]) for part in batch)
    weights = torch.tensor([2.0, 1.0, 1.0, 1.0])
    found = []
    for given, counts in ((batch, weights), (twice, torch.ones(5))):
        covariances = Covariances()
        covariances.add(passed(small, layers, given, drawn_classes), given[1], counts)
        moments = SecondMoments(covariances.bases())
        moments.add(passed(small, layers, given, drawn_classes), counts)
        found.append(moments.curvature())
    for name, block in found[0].blocks.items():
        assert torch.allclose(block.dense(), found[1].blocks[name].dense(), atol=1e-5)


def test_tokens_that_the_loss_does_not_reach_have_no_effect(small):
    """Whatever stands there, in the inputs of every layer."""
    ((inputs, reach, classes),) = classified(small, sequences=32)
    reach[:, 2] = 0

    def looks_at_two(logits, batch):
        return drawn_classes(logits[:, :2], (None, None, batch[2][:, :2]))

    found = []
    for noise in (0.0, 50.0):
        changed = inputs.clone()
        changed[:, 2] += noise
        found.append(fitted(small, [(changed, reach, classes)], looks_at_two))
    cut = [(inputs[:, :2], reach[:, :2], classes[:, :2])]
    found.append(fitted(small, cut, looks_at_two))
    for other in found[1:]:
        for name, block in found[0].blocks.items():
            assert torch.allclose(block.dense(), other.blocks[name].dense(), atol=1e-6)


# -- against the exact inverse ---------------------------------------------------------------------


def test_a_deep_linear_network_with_squared_error_gets_its_exact_block_inverse():
    for found in deep_linear_cosines().values():
        assert found >= 0.999


@pytest.mark.parametrize(("name", "sizes"), FAMILY)
def test_it_is_nearer_to_the_exact_damped_inverse_than_the_plain_gradient_is(name, sizes):
    found = family_cosines(name, sizes)
    assert found["inverse"] > found["identity"] > found["released"]


# -- the layers ------------------------------------------------------------------------------------


def test_gradients_are_those_of_automatic_differentiation(small):
    (batch,) = classified(small, sequences=5)
    layers = trained_layers(small)
    found = passed(small, layers, batch, drawn_classes)
    for sequence in range(5):
        alone = tuple(part[sequence : sequence + 1] for part in batch)
        small.zero_grad()
        drawn_classes(small(alone[0]), alone).backward()
        for name, layer in layers.items():
            expected = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
            assert torch.allclose(found[name].per_sequence()[sequence], expected, atol=1e-5)


def test_layers_that_are_not_trained_are_left_out(small):
    small[0].weight.requires_grad_(False)
    assert list(trained_layers(small)) == ["2"]
    small[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no linear layer"):
        trained_layers(small)


def test_a_layer_whose_sequences_cannot_be_told_apart_is_refused_by_name(small):
    layers, shape = {"first": small[0]}, (1, 2)

    def twice():
        return (small[0](torch.ones(1, 2, 4)) + small[0](torch.ones(1, 2, 4))).sum()

    with pytest.raises(UsageError, match="layer first runs more than once"):
        flows(layers, twice, shape)
    for other in ((1, 4), (3, 4), (1, 3, 4), (2, 1, 2, 4)):
        with pytest.raises(UsageError, match=r"layer first reads \(.* where \(1, 2\)"):
            flows(layers, lambda other=other: small[0](torch.ones(other)).sum(), shape)
    with pytest.raises(UsageError, match="did not take part"):
        flows(layers, lambda: torch.ones(1).sum(), shape)


def folded(inputs):
    return inputs.flatten(0, 1)


def with_heads(inputs):
    return inputs.unflatten(0, (-1, 1))


@pytest.mark.parametrize("arranged", [folded, with_heads])
def test_layers_may_arrange_sequences_and_tokens_otherwise(small, arranged):
    """As published architectures do; what has no effect on the loss has none there either."""
    inputs, reach = torch.randn(4, 3, 4), torch.ones(4, 3)
    reach[:, 2] = 0
    found = []
    for arrange in (lambda inputs: inputs, arranged):

        def loss(arrange=arrange):
            outputs = small(arrange(inputs)).reshape(4, 3, 3)
            return outputs[:, :2].square().sum()

        passed = flows(trained_layers(small), loss, (4, 3))
        covariances = Covariances()
        covariances.add(passed, reach, torch.ones(4))
        moments = SecondMoments(covariances.bases())
        moments.add(passed, torch.ones(4))
        found.append(moments.curvature())
    for name, block in found[0].blocks.items():
        assert torch.allclose(block.dense(), found[1].blocks[name].dense(), atol=1e-5)


def test_tokens_of_several_heads_count_as_so_many_tokens(small):
    heads = torch.randn(4, 2, 3, 4)
    beside = torch.cat([heads[:, 0], heads[:, 1]], dim=1)
    reach = torch.ones(4, 3)
    reach[:, 2] = 0
    layers = {"first": small[0]}

    def of_heads():
        return small[0](heads)[:, :, :2].square().sum()

    def of_tokens():
        return (small[0](beside) * reach.repeat(1, 2)[:, :, None]).square().sum()

    one, other = Covariances(), Covariances()
    one.add(flows(layers, of_heads, (4, 3)), reach, torch.ones(4))
    other.add(flows(layers, of_tokens, (4, 6)), reach.repeat(1, 2), torch.ones(4))
    for part in ("inputs", "gradients"):
        expected = getattr(other, part)["first"]
        assert torch.allclose(getattr(one, part)["first"], expected, atol=1e-5)


def test_one_layer_with_independent_errors_has_the_kronecker_product_as_its_block():
    """Squared error, one token a sequence: plain K-FAC is exact there up to sampling."""
    torch.manual_seed(4)
    layer = stack([4, 3], nn.Tanh, bias=False)
    inputs, errors = torch.randn(20_000, 1, 4) @ torch.randn(4, 4), torch.randn(20_000, 1, 3)
    outputs = layer(inputs).detach()
    batch = (inputs, torch.ones(20_000, 1), outputs + errors)
    layers = trained_layers(layer)

    def squared(found, batch):
        return 0.5 * (found - batch[2]).square().sum()

    ((name, block),) = fitted(layer, [batch], squared).blocks.items()
    flow = passed(layer, layers, batch, squared)[name]
    rows_in, rows_out = flow.inputs[:, 0], flow.gradients[:, 0]
    count = len(rows_in)
    kronecker = torch.kron(rows_out.T @ rows_out / count, rows_in.T @ rows_in / count)
    gradients = flow.per_sequence().flatten(1)
    exact = gradients.T @ gradients / count
    assert (kronecker - exact).norm() / exact.norm() < 0.05
    assert (block.dense() - exact).norm() / exact.norm() < 0.05
