"""How slices answer to tokens: a Bayesian regression for each objective, fitted to one run.

What is regressed on what stands in `relations`. The mean of a slice is cut off at the ends of the
scale: one seen at an end may lie anywhere beyond it. Trainings are lucky or not: each moves all
slices of an objective together. The selection mean is one more measurement of the same slices, on
other prompts, which may be easier or harder.

The rounds correct what is believed, but for one thing: an objective's own data are never believed
to hurt it. With no rounds yet the prior speaks alone. A mixture far from all that was tried is less
certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.noise import slice_noise
from agent.planners.influence_prior import Slopes, influence_slopes
from agent.planners.regression import Fitted, Prior, Seen, fit_censored, log_evidence
from agent.planners.relations import Relations, centered, relations, with_influence
from agent.weights import Cell, Floats, cell_shares, plan_shares, share_row
from mosaic.core.types.evaluation import FailureProfile
from mosaic.core.types.runs import Observation, Trial, each_trial

# (objective, slice)
SliceKey = tuple[str, str]

# What the model misses, in points, of a slice's mean and of an objective's; and how far a training
# moves all slices of an objective together.
SLICE_MISFIT, MEAN_MISFIT, LUCK = 0.15, 0.08, 0.1
# The base is trained on nothing, which is more than having a hundredth of every share: what training
# at all brings is not what a little more of some data does.
BASE_MISFIT = 1.5
# The fit's own uncertainty is too wide as it stands, since the prior must leave room for declarations
# that are wrong: for the search, and for intervals of forecasts. Both were found on pools of a table
# that no figure is taken of.
FIT_SCALE, FORECAST_SCALE = 0.5, 0.7
# How far selection prompts may be easier or harder than steering prompts, in points.
ROLE_SD = 0.3
# How far looks of one kind may lie above or below full trainings, all of them alike; how far each is
# off by itself, of which the most probable is taken; and what is believed of that, in points and as
# the standard deviation of a logarithm.
LOOK_BIAS_SD = 0.5
LOOK_ERRORS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
USUAL_LOOK_ERROR, LOOK_ERROR_SPREAD = 0.3, 1.0
# So many of the latest looks are read, and all experts: more of the same few adapters say little.
MAX_LOOKS = 60
# Looks that are added up of experts, and those that are trained on a part of the tokens.
MERGED, FRACTION = "merged", "fraction"


@dataclass(frozen=True)
class MeasuredMixture:
    """One mixture that was trained, or the base, trained on none.

    `shares` are token shares per cell, `means` steering means per (objective, slice), `selection`
    the selection means per objective. `look` is its kind if it was a look, and `experts` place among
    the measured mixtures -> weight of what it is added up of.
    """

    shares: Mapping[Cell, float]
    means: Mapping[SliceKey, float]
    selection: Mapping[str, float] = field(default_factory=dict)
    look: str = ""
    experts: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LookError:
    """How looks of one kind differ from full trainings, in points: all alike, and each by itself."""

    bias: float
    deviation: float


@dataclass(frozen=True)
class _Objective:
    """What was fitted for one objective."""

    relations: Relations
    fitted: Fitted
    looks: Mapping[str, LookError]


class ResponseModel:
    """Predicts means (1-5) of mixtures that are given as rows of cell shares."""

    def __init__(
        self,
        cells: Sequence[Cell],
        datasets: Mapping[str, Sequence[str]],
        measured: Sequence[MeasuredMixture],
        hardness: Mapping[str, float] | None = None,
        noise: Mapping[str, float] | None = None,
        usual: Mapping[Cell, float] | None = None,
        slopes: Mapping[str, Slopes] | None = None,
    ) -> None:
        """Fit one regression for each objective that any mixture measured.

        `datasets` is objective -> data sets; `cells` gives the columns of all rows. `hardness` is
        bucket -> weight in the suites, `noise` objective -> how far a slice's mean moves from one
        training to the next, in points. `usual` is the mixture at which slices are believed to stand
        in the middle of the scale: the pools' own, else even shares. `slopes` is objective -> what
        influence says of it.
        """
        self.cells = list(cells)
        self.slices: list[SliceKey] = []
        self.mixtures = len(measured)
        self._objectives: dict[str, _Objective] = {}
        shares = np.array([share_row(self.cells, mixture.shares) for mixture in measured])
        center = np.array(share_row(self.cells, usual or dict.fromkeys(self.cells, 1.0)))
        center = center / center.sum() if len(center) else center
        for objective, declared in datasets.items():
            names: dict[str, None] = {}
            for mixture in measured:
                names.update({name: None for of, name in mixture.means if of == objective})
            if not names:
                continue
            related = relations(self.cells, list(names), declared, hardness or {})
            if slopes and objective in slopes:
                related = with_influence(related, slopes[objective])
            related = centered(related, center)
            found = _fit(objective, related, shares, measured, (noise or {}).get(objective, 0.1))
            self._objectives[objective] = found
            self.slices += [(objective, name) for name in names]

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives that were fitted."""
        return list(self._objectives)

    @property
    def looks(self) -> dict[str, Mapping[str, LookError]]:
        """Objective -> kind of look -> how such looks were off in this run."""
        return {name: found.looks for name, found in self._objectives.items() if found.looks}

    @property
    def influence_weights(self) -> dict[str, float]:
        """Objective -> the weight that its influence has by now: 0 for none, 1 in place of the declared."""
        weights = {}
        for name, found in self._objectives.items():
            if found.relations.turn is not None:
                place = len(found.relations.prior.mean) - 1
                weights[name] = float(found.fitted.mean[place])
        return weights

    def predict(self, shares: Floats, objective: str, noise: float, deviates: Floats) -> Floats:
        """Predicted selection mean of an objective, its slices counting alike, as in the suites.

        `shares` are mixtures, shape (n, cells). `deviates`, shape (k,), are standard normal: by
        each, all slices lie higher or lower together. One unit of them is

            sqrt(spread of the fit at this mixture^2 + noise^2)        0.5 = sqrt(0.4^2 + 0.3^2)

        with `noise` the standard deviation of a training. Returns shape (n, k), in 1-5; all NaN
        for an objective without slices.
        """
        found = self._objectives.get(objective)
        if found is None:
            return np.full((len(shares), len(deviates)), np.nan)
        latent = self.latent(shares, objective)
        spread = np.hypot(self.spread(shares, objective), noise)
        total = np.zeros((len(shares), len(deviates)))
        for column in latent.T:
            total += np.clip(column[:, None] + spread[:, None] * deviates, 1.0, 5.0)
        return total / latent.shape[1]

    def spread(self, shares: Floats, objective: str, scale: float = FIT_SCALE) -> Floats:
        """How unsure the fit is of an objective's mean at each mixture: shape (n,), in points.

        `scale` is the share of what the regression says that is believed.
        """
        found = self._objectives[objective]
        features = _with_role(found.relations.mean_features(shares))
        size = features.shape[1]
        covariance = found.fitted.covariance[:size, :size]
        variance = ((features @ covariance) * features).sum(axis=1)
        return np.asarray(scale * np.sqrt(np.maximum(variance, 0.0)))

    def difference(
        self, after: Floats, before: Floats, objective: str
    ) -> tuple[float, float] | None:
        """Predicted change of an objective's mean from one mixture to another, and how unsure.

        `after` and `before` have shape (cells,). The uncertainty is the standard deviation of the
        fit at the difference of the features d, sqrt(d covariance d). None for an objective
        without slices.
        """
        found = self._objectives.get(objective)
        if found is None:
            return None
        rows = np.array([after, before])
        then, now = np.clip(self.latent(rows, objective), 1.0, 5.0).mean(axis=1)
        features = found.relations.mean_features(rows)
        step = features[0] - features[1]
        covariance = found.fitted.covariance[: len(step), : len(step)]
        return float(then - now), float(np.sqrt(step @ covariance @ step))

    def doubling_effect(self, key: SliceKey) -> float:
        """What doubling all of its objective's tokens is believed to add to a slice's mean.

        It is (own + kin) log 2: with coefficients 0.4 and 0.6, 0.69 points. Raises KeyError for a
        slice that no mixture measured.
        """
        found = self._objectives[key[0]]
        if key[1] not in found.relations.slices:
            raise KeyError(key)
        row = found.relations.own_columns[list(found.relations.slices).index(key[1])]
        return float(row @ found.fitted.mean[: len(row)] * np.log(2))

    def latent(self, shares: Floats, objective: str) -> Floats:
        """The mean of each slice before it is cut off, on selection prompts: (n, slices)."""
        found = self._objectives[objective]
        features = found.relations.features(shares)
        size = features.shape[2]
        mean = found.fitted.mean
        return np.asarray(features @ mean[:size] + mean[size])


def _fit(
    objective: str,
    related: Relations,
    shares: Floats,
    measured: Sequence[MeasuredMixture],
    noise: float,
) -> _Objective:
    """The coefficients of `related`, then the role, lucks that looks share, and the bias of looks.

    How far looks are off by themselves is what makes all that was seen most probable.
    """
    kinds = sorted({mixture.look for mixture in measured} - {""})
    seen = _seen(objective, related, shares, measured, noise, kinds)
    deviations = dict.fromkeys(kinds, USUAL_LOOK_ERROR)
    for kind in kinds:
        likely = -np.inf
        for deviation in LOOK_ERRORS:
            tried = _prior(related, measured, {**deviations, kind: deviation})
            off = np.log(deviation / USUAL_LOOK_ERROR) / LOOK_ERROR_SPREAD
            likelihood = log_evidence(seen, tried) - off * off / 2
            if likelihood > likely:
                likely, best = likelihood, deviation
        deviations[kind] = best
    fitted = fit_censored(seen, _prior(related, measured, deviations))
    biases = fitted.mean[len(fitted.mean) - len(kinds) :]
    looks = {}
    for kind, bias in zip(kinds, biases.tolist(), strict=True):
        looks[kind] = LookError(bias=bias, deviation=deviations[kind])
    return _Objective(related, fitted, looks)


def _with_own_luck(measured: Sequence[MeasuredMixture]) -> list[int]:
    """Places of the mixtures whose luck has a coefficient: looks, and what looks are added up of.

    A look has the luck of its experts too, and its deviation is found out. The luck of all others
    is theirs alone.
    """
    summed = {place for mixture in measured for place in mixture.experts}
    return [place for place, one in enumerate(measured) if one.look or place in summed]


def _seen(
    objective: str,
    related: Relations,
    shares: Floats,
    measured: Sequence[MeasuredMixture],
    noise: float,
    kinds: Sequence[str],
) -> Seen:
    """Steering means of slices, and selection means. A sum of experts has their luck, too."""
    by_slice = related.features(shares)
    of_mean = related.mean_features(shares)
    # The base has no tokens of anything, which says nothing of which data matter to which objective.
    base = [place for place, mixture in enumerate(measured) if not mixture.shares]
    by_slice[base, :, related.first_shared :] = 0.0
    of_mean[base, related.first_shared :] = 0.0
    own = {place: column for column, place in enumerate(_with_own_luck(measured), start=1)}
    size, extras = of_mean.shape[1], 1 + len(own) + len(kinds)
    rows = np.zeros((len(measured) * (len(related.slices) + 1), size + extras))
    seen: list[float] = []
    spread: list[float] = []
    group: list[int] = []
    for number, mixture in enumerate(measured):
        extra = np.zeros(extras)
        if number in own:
            extra[own[number]] = 1.0
        for place, weight in mixture.experts.items():
            extra[own[place]] += weight
        if mixture.look:
            extra[1 + len(own) + kinds.index(mixture.look)] = 1.0
        misfit = BASE_MISFIT if not mixture.shares else 0.0
        for place, name in enumerate(related.slices):
            mean = mixture.means.get((objective, name))
            if mean is not None:
                rows[len(seen), :size] = by_slice[number, place]
                rows[len(seen), size:] = extra
                seen.append(mean)
                spread.append(np.sqrt(SLICE_MISFIT**2 + noise**2 + misfit**2))
                group.append(number)
        if objective in mixture.selection:
            extra[0] = 1.0
            rows[len(seen), :size] = of_mean[number]
            rows[len(seen), size:] = extra
            seen.append(mixture.selection[objective])
            spread.append(np.sqrt(MEAN_MISFIT**2 + noise**2 / 4 + misfit**2))
            group.append(number)
    luck = [0.0 if number in own else LUCK for number in group]
    return Seen(
        rows[: len(seen)], np.array(seen), np.array(spread), np.array(group), np.array(luck)
    )


def _prior(
    related: Relations, measured: Sequence[MeasuredMixture], deviations: Mapping[str, float]
) -> Prior:
    """What is believed of all coefficients; `deviations` is kind of look -> how far each is off."""
    own = [measured[place] for place in _with_own_luck(measured)]
    lucks = [deviations.get(mixture.look, LUCK) ** 2 for mixture in own]
    extra = np.array([ROLE_SD**2, *lucks, *[LOOK_BIAS_SD**2] * len(deviations)])
    prior = related.prior
    size = len(prior.mean)
    means = np.concatenate([prior.mean, np.zeros(len(extra))])
    covariance = np.zeros((len(means), len(means)))
    covariance[:size, :size] = prior.covariance
    covariance[size:, size:] = np.diag(extra)
    bounded = np.concatenate([prior.at_least_zero, np.zeros(len(extra), dtype=bool)])
    return Prior(means, covariance, bounded)


def _with_role(features: Floats) -> Floats:
    """Features of selection prompts: the role's coefficient counts."""
    return np.hstack([features, np.ones((len(features), 1))])


def fit_responses(observation: Observation) -> ResponseModel:
    """The model of everything that was measured in this run, over all cells that have stock."""
    cells: list[Cell] = []
    for dataset, per_bucket in observation.bucket_proportions.items():
        for bucket in per_bucket:
            cells.append((dataset, bucket))
    datasets = {objective.name: objective.datasets for objective in observation.objectives}
    repeats = observation.calibration.trials if observation.calibration else []
    noise = slice_noise(repeats, datasets)
    return ResponseModel(
        cells,
        datasets,
        measured_mixtures(observation),
        hardness(observation.profile),
        {name: estimate.deviation for name, estimate in noise.items()},
        cell_shares(observation.proportions, observation.bucket_proportions),
        influence_slopes(observation.influence, cells),
    )


def hardness(profile: FailureProfile) -> dict[str, float]:
    """Slice -> its weight in the suites, the mean over objectives that have a slice of that name."""
    weights: dict[str, list[float]] = {}
    for slice_ in profile.slices:
        weights.setdefault(slice_.slice, []).append(slice_.weight)
    return {name: sum(each) / len(each) for name, each in weights.items()}


def measured_mixtures(observation: Observation) -> list[MeasuredMixture]:
    """Everything that was trained or looked at in this run, the base as a mixture of no tokens."""
    trials = []
    for past in each_trial(observation.history):
        if past.failure or (past.plan and not past.trial.spec.tokens):
            continue  # nothing was trained, or nothing on a mixture
        trials.append(past.trial)
    if observation.calibration:
        trials += observation.calibration.trials
    measured = [_measured(trial, observation) for trial in trials]
    places: dict[str, int] = {}
    for look in looks_read(observation):
        if not look.spec.merged:
            if look.adapter is not None:
                places[look.adapter.digest] = len(measured)
            part = look.spec.tokens < observation.budget_per_round
            mixture = _measured(look, observation)
            measured.append(replace(mixture, look=FRACTION if part else ""))
    for look in looks_read(observation):
        if look.spec.merged.keys() <= places.keys() and look.spec.merged:
            experts = {places[digest]: weight for digest, weight in look.spec.merged.items()}
            measured.append(_summed(look, experts, measured))
    return measured


def looks_read(observation: Observation) -> list[Trial]:
    """The looks that the fit reads: the experts that others are added up of, and the latest."""
    summed: set[str] = set()
    for look in observation.looks:
        summed |= look.spec.merged.keys()
    experts = [one for one in observation.looks if one.adapter and one.adapter.digest in summed]
    others = [one for one in observation.looks if one not in experts]
    return [*experts, *others[-MAX_LOOKS:]]


def _measured(trial: Trial, observation: Observation) -> MeasuredMixture:
    """A trial that was trained, or the base."""
    selection = {}
    for objective, roles in trial.scores.items():
        score = roles.get("selection")
        if score is not None and score.mean is not None:
            selection[objective] = score.mean
    shares = delivered_shares(trial, observation)
    return MeasuredMixture(shares, slice_means(trial.profile), selection)


def _summed(
    look: Trial, experts: Mapping[int, float], measured: Sequence[MeasuredMixture]
) -> MeasuredMixture:
    """A look that was added up: its shares are the sum of what the experts were trained on."""
    shares: dict[Cell, float] = {}
    for place, weight in experts.items():
        for cell, share in measured[place].shares.items():
            shares[cell] = shares.get(cell, 0.0) + weight * share
    within = {cell: max(0.0, share) for cell, share in shares.items()}
    return MeasuredMixture(within, slice_means(look.profile), look=MERGED, experts=experts)


def delivered_shares(trial: Trial, observation: Observation) -> dict[Cell, float]:
    """The tokens that a trial was trained on, per cell, as shares of those that it was to have.

    What a bucket could not give is missing. A trial that says nothing of it got what was asked.
    """
    if trial.plan is None:
        return {}
    if trial.curation is None:
        return plan_shares(trial.plan, observation.bucket_proportions)
    shares = {}
    for dataset, report in trial.curation.datasets.items():
        for bucket, delivered in report.buckets.items():
            shares[dataset, bucket] = delivered.selected / trial.spec.tokens
    return shares


def slice_means(profile: FailureProfile) -> dict[SliceKey, float]:
    """Mean of every slice that is scored."""
    means = {}
    for slice_ in profile.slices:
        if slice_.score.mean is not None:
            means[slice_.objective, slice_.slice] = slice_.score.mean
    return means
