"""IDEAL's rule on losses whose optimum is known in closed form, and its loop on a real network."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.influence_networks import fitted, stack
from training.influence.ekfac import Basis, Block, Curvature
from training.influence.gradients import flows, trained_layers, weighted_sums
from training.influence.ideal import alphas, at_equilibrium, resized, steps

DIMENSIONS = 4


class Quadratics:
    """Domains with the loss n/2 (theta - mu)^T A (theta - mu), and a reference of the same form."""

    def __init__(self, sizes=(40.0, 25.0, 10.0), seed=0, ridge=0.0):
        torch.manual_seed(seed)
        self.sizes, self.ridge = torch.tensor(sizes, dtype=torch.float64), ridge
        count = len(sizes)
        self.centers = torch.randn(count, DIMENSIONS, dtype=torch.float64)
        roots = torch.randn(count + 1, DIMENSIONS, DIMENSIONS, dtype=torch.float64)
        forms = roots @ roots.transpose(1, 2) + 0.1 * torch.eye(DIMENSIONS)
        self.forms, self.reference_form = forms[:-1], forms[-1]
        self.target = torch.randn(DIMENSIONS, dtype=torch.float64)

    def optimum(self, beta=None):
        """theta*(beta) in closed form."""
        beta = torch.zeros(len(self.sizes), dtype=torch.float64) if beta is None else beta
        weights = ((1 + beta) * self.sizes)[:, None, None]
        matrix = (weights * self.forms).sum(0) + self.ridge * torch.eye(DIMENSIONS)
        vector = (weights * self.forms @ self.centers[:, :, None]).sum(0)[:, 0]
        return torch.linalg.solve(matrix, vector)

    def reference(self, theta):
        away = theta - self.target
        return 0.5 * away @ self.reference_form @ away

    def value(self, beta):
        """Q(beta): the reference loss at the optimum."""
        return self.reference(self.optimum(beta))

    def hessian(self):
        weighted = (self.sizes[:, None, None] * self.forms).sum(0)
        return weighted + self.ridge * torch.eye(DIMENSIONS)

    def gradients(self):
        """Of each domain's summed loss at the optimum."""
        theta = self.optimum()
        found = {}
        for j, (n, form, center) in enumerate(
            zip(self.sizes, self.forms, self.centers, strict=True)
        ):
            found[j] = {"layer": (n * form @ (theta - center))[None]}
        return found

    def reference_gradient(self):
        return {"layer": (self.reference_form @ (self.optimum() - self.target))[None]}

    def alphas(self, reference=None, domains=None, variant="inverse"):
        return alphas(
            reference or self.reference_gradient(),
            domains or self.gradients(),
            exact(self.hessian()),
            variant,
        )


def exact(hessian, damping=0.0):
    """A Hessian as the curvature of one layer with a single output."""
    values, vectors = torch.linalg.eigh(hessian)
    basis = Basis(vectors, torch.ones(1, 1, dtype=torch.float64))
    return Curvature({"layer": Block(basis, values[None], damping)})


@pytest.fixture(params=range(3))
def quadratics(request):
    return Quadratics(seed=request.param)


def test_alpha_is_the_derivative_of_the_reference_loss(quadratics):
    found = quadratics.alphas()
    beta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (automatic,) = torch.autograd.grad(quadratics.value(beta), beta)
    for j in range(3):
        assert found[j] == pytest.approx(float(automatic[j]), rel=1e-8)
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[j]
        central = (quadratics.value(step) - quadratics.value(-step)) / 2e-5
        assert found[j] == pytest.approx(float(central), rel=1e-5)


def test_alphas_sum_to_zero_at_an_optimum(quadratics):
    assert sum(quadratics.alphas().values()) == pytest.approx(0, abs=1e-9)


def test_with_a_ridge_they_sum_to_what_the_ridge_holds_back():
    held = Quadratics(ridge=3.0)
    ridge = {"layer": (held.ridge * held.optimum())[None]}
    expected = -alphas(held.reference_gradient(), {0: ridge}, exact(held.hessian()))[0]
    assert sum(held.alphas().values()) == pytest.approx(expected, rel=1e-8)
    assert abs(expected) > 1e-3


def test_in_the_mean_form_they_sum_to_zero_by_size_and_order_domains_otherwise():
    found = Quadratics(sizes=(200.0, 60.0, 2.0), seed=1)
    means = {}
    for j, gradient in found.gradients().items():
        means[j] = {"layer": gradient["layer"] / found.sizes[j]}
    mean_form = found.alphas(domains=means)
    weighted = [float(found.sizes[j]) * alpha for j, alpha in mean_form.items()]
    assert sum(weighted) == pytest.approx(0, abs=1e-9)
    by_sum = max(found.alphas().items(), key=lambda item: abs(item[1]))[0]
    by_mean = max(mean_form.items(), key=lambda item: abs(item[1]))[0]
    assert by_sum != by_mean


@given(share=st.floats(0.01, 0.99))
def test_a_domain_that_is_split_has_the_sum_of_its_parts(share):
    found = Quadratics()
    domains = found.gradients()
    whole = found.alphas()[0]
    first = {"layer": share * domains[0]["layer"]}
    second = {"layer": domains[0]["layer"] - first["layer"]}
    parts = found.alphas(domains={"first": first, "second": second})
    assert parts["first"] + parts["second"] == pytest.approx(whole, rel=1e-9)


@given(factor=st.integers(2, 9))
def test_having_every_row_several_times_changes_no_step(factor):
    once, often = Quadratics(), Quadratics(sizes=(40.0 * factor, 25.0 * factor, 10.0 * factor))
    one, other = steps(once.alphas(), 0.15), steps(often.alphas(), 0.15)
    assert one == pytest.approx(other, rel=1e-8)


@given(factor=st.floats(1e-3, 1e3), order=st.permutations([0, 1, 2]))
def test_neither_the_scale_of_the_reference_loss_nor_the_order_of_domains_matters(factor, order):
    found = Quadratics()
    scaled = {"layer": factor * found.reference_gradient()["layer"]}
    gradients = found.gradients()
    shuffled = {j: gradients[j] for j in order}
    beta = steps(found.alphas(reference=scaled, domains=shuffled), 0.15)
    assert beta == pytest.approx(steps(found.alphas(), 0.15), rel=1e-8)


@given(
    alpha=st.dictionaries(st.text(max_size=3), st.floats(-1e9, 1e9), min_size=1),
    most=st.sampled_from([0.15, 0.3]),
)
def test_the_domain_that_matters_most_moves_by_exactly_m(alpha, most):
    beta = steps(alpha, most)
    assert max(abs(value) for value in beta.values()) == (most if any(alpha.values()) else 0)
    for domain, value in beta.items():
        assert value * alpha[domain] <= 0


@pytest.mark.parametrize("most", [0.15, 0.3])
def test_the_step_lowers_the_reference_loss(quadratics, most):
    beta = torch.tensor(list(steps(quadratics.alphas(), most).values()), dtype=torch.float64)
    assert quadratics.value(beta) < quadratics.value(torch.zeros_like(beta))


def test_a_little_more_of_a_domain_with_a_positive_step_lowers_the_reference_loss(quadratics):
    nothing = quadratics.value(torch.zeros(3, dtype=torch.float64))
    for j, beta in steps(quadratics.alphas(), 0.15).items():
        little = 1e-3 * torch.eye(3, dtype=torch.float64)[j]
        assert (quadratics.value(little) < nothing) == (beta > 0)


def test_the_released_variant_multiplies_and_orders_domains_otherwise():
    found = Quadratics(seed=2)
    released = found.alphas(variant="released")
    assert released[0] == pytest.approx(
        -float(
            found.reference_gradient()["layer"][0]
            @ found.hessian()
            @ found.gradients()[0]["layer"][0]
        )
    )
    beta = torch.tensor(list(steps(found.alphas(), 0.15).values()), dtype=torch.float64)
    other = torch.tensor(list(steps(released, 0.15).values()), dtype=torch.float64)
    assert found.value(beta) < found.value(other)


def test_much_damping_ranks_by_the_plain_gradients(quadratics):
    heavy = exact(quadratics.hessian(), damping=1e9)
    ranked = alphas(quadratics.reference_gradient(), quadratics.gradients(), heavy)
    plain = quadratics.alphas(variant="identity")
    assert sorted(ranked, key=ranked.get) == sorted(plain, key=plain.get)


def test_a_reference_without_a_gradient_asks_for_no_step(quadratics):
    nothing = {"layer": torch.zeros(1, DIMENSIONS, dtype=torch.float64)}
    assert steps(quadratics.alphas(reference=nothing), 0.15) == {0: 0.0, 1: 0.0, 2: 0.0}


def test_an_alpha_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="damping"):
        steps({"a": float("inf"), "b": 1.0}, 0.15)


def test_the_training_set_as_its_own_reference_is_at_equilibrium(quadratics):
    """Its gradient vanishes at the optimum but for rounding, which the rule must not blow up."""
    total = sum(g["layer"] for g in quadratics.gradients().values())
    found = list(quadratics.alphas(reference={"layer": total}).values())
    assert at_equilibrium(found, [1e-9] * 3)


def test_pure_noise_seldom_passes_for_a_direction_and_a_signal_twice_as_long_mostly_does():
    torch.manual_seed(0)
    noise = torch.randn(4000, 15)
    signal = torch.nn.functional.normalize(torch.randn(4000, 15), dim=1) * 2 * 15**0.5
    ones = [1.0] * 15
    alarms = sum(not at_equilibrium(draw, ones) for draw in noise.tolist())
    found = sum(not at_equilibrium(draw, ones) for draw in (noise + signal).tolist())
    assert alarms / 4000 < 0.03
    assert found / 4000 > 0.97
    assert at_equilibrium([], [])


def test_a_direction_that_is_taken_points_the_right_way():
    """Its squared cosine with the true one is what the rule expects of it."""
    torch.manual_seed(1)
    true = torch.nn.functional.normalize(torch.randn(4000, 15), dim=1) * 1.5 * 15**0.5
    measured = true + torch.randn(4000, 15)
    whole = measured.square().sum(dim=1)
    expected = ((whole - 15) / whole).mean()
    cosines = torch.nn.functional.cosine_similarity(true, measured).square().mean()
    assert abs(float(cosines - expected)) < 0.05


BETAS = st.floats(-1, 1)


@given(st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, 10**6), BETAS), min_size=1))
def test_sizes_are_whole_and_within_one_row_of_what_is_asked(domains):
    sizes = {domain: size for domain, (size, _) in domains.items()}
    beta = {domain: step for domain, (_, step) in domains.items()}
    for domain, size in resized(sizes, beta).items():
        assert isinstance(size, int)
        assert size >= 0
        assert abs(size - sizes[domain] * (1 + beta[domain])) <= 1


@given(
    st.dictionaries(
        st.integers(0, 9), st.tuples(st.integers(1, 10**6), st.floats(-0.9, 1)), min_size=1
    ),
    st.integers(0, 10**6),
)
def test_with_the_total_fixed_it_is_kept_exactly(domains, total):
    sizes = {domain: size for domain, (size, _) in domains.items()}
    beta = {domain: step for domain, (_, step) in domains.items()}
    found = resized(sizes, beta, total)
    assert sum(found.values()) == total
    assert min(found.values()) >= 0
    whole = sum(sizes[d] * (1 + beta[d]) for d in sizes)
    for domain, size in found.items():
        assert abs(size - total * sizes[domain] * (1 + beta[domain]) / whole) <= 1


def test_less_than_nothing_of_a_domain_is_an_error():
    with pytest.raises(ValueError, match=r"a: beta is -1\.5"):
        resized({"a": 10}, {"a": -1.5})
    with pytest.raises(ValueError, match="all domains are empty"):
        resized({"a": 10}, {"a": -1.0}, total=10)


# -- the loop --------------------------------------------------------------------------------------

ROWS = 240


def useful(half, generator):
    """Inputs that one half of the features decides, with their class."""
    inputs = torch.randn(ROWS, 1, 6, generator=generator) * 0.3
    inputs[:, :, 3 * half : 3 * half + 3] = torch.randn(ROWS, 1, 3, generator=generator)
    classes = inputs[:, 0, 3 * half : 3 * half + 3].argmax(dim=1)
    return inputs, classes


def losses(logits, classes):
    return nn.functional.cross_entropy(logits.flatten(0, 1), classes, reduction="none")


def train(domains, sizes):
    """A network trained to its optimum with each domain weighted by its size."""
    model = stack([6, 8, 3], nn.Tanh, bias=True, seed=7)
    total = sum(sizes.values())
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = 1e-3 * sum(p.square().sum() for p in model.parameters())
        for name, (inputs, classes) in domains.items():
            loss = loss + sizes[name] / total * losses(model(inputs), classes).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    return model


def test_the_loop_takes_tokens_from_noise_and_ends_below_equal_shares():
    generator = torch.Generator().manual_seed(11)
    domains = {"left": useful(0, generator), "right": useful(1, generator)}
    inputs, classes = useful(0, generator)
    noise = torch.randint(3, (ROWS,), generator=generator)
    domains["noise"] = (
        inputs,
        torch.where(torch.rand(ROWS, generator=generator) < 0.8, noise, classes),
    )
    held_out = [useful(0, generator), useful(1, generator)]
    reference = tuple(torch.cat(parts) for parts in zip(*held_out, strict=True))
    sizes = dict.fromkeys(domains, 1000)
    values = []
    for _ in range(6):
        model = train(domains, sizes)
        values.append(losses(model(reference[0]), reference[1]).mean().item())
        beta = steps(alphas_of(model, domains, sizes, reference), most=0.3)
        sizes = resized(sizes, beta, total=3000)
    assert sizes["noise"] < 500
    assert values[-1] < values[0] - 0.02
    falls = [later < earlier for earlier, later in itertools.pairwise(values)]
    assert falls[0]


def alphas_of(model, domains, sizes, reference):
    layers = trained_layers(model)

    def gradient(inputs, classes, weight):
        passed = flows(layers, lambda: losses(model(inputs), classes).sum(), (len(inputs), 1))
        return weighted_sums(passed, torch.full((len(inputs),), weight))

    drawn = []
    for name, (inputs, _) in domains.items():
        torch.manual_seed(len(drawn))
        repeated = inputs[torch.randint(len(inputs), (sizes[name],))]
        probabilities = torch.softmax(model(repeated)[:, 0], dim=-1).detach()
        classes = torch.multinomial(probabilities, 1)[:, 0]
        drawn.append((repeated, torch.ones(len(repeated), 1), classes))
    curvature = fitted(model, drawn, lambda y, batch: losses(y, batch[2]).sum(), damping=0.1)
    total = sum(sizes.values())
    found = {}
    for name, (inputs, classes) in domains.items():
        found[name] = gradient(inputs, classes, sizes[name] / total / len(inputs))
    return alphas(gradient(*reference, 1 / len(reference[0])), found, curvature)
