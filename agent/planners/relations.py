"""Which cells speak for which slices, and what is believed of it before anything is measured.

On the 1-5 scale, a slice's mean is linear in logarithms of shares of tokens, log(share + 0.01), less
those of the pools' own mixture, where to a single bucket's share a tenth of an even share is added if
that is less:

    mean = c(slice)
         + own(slice) log(own bucket) + kin(slice) log(other buckets of its objective's data)
         + namesake(slice) log(buckets of its name in other data, if it has none of its own)
         + data(d) log(data set d), for every data set
         + cell(b) log(bucket b), for every bucket of a data set that has several

The config declares which data sets are an objective's own; so believed are `own` and `kin`, which
together add 1.0 points for a logarithm of all of an objective's tokens. The last three are believed
to be zero and are learned: data that were declared for another objective may help or hurt this one,
a data set that was declared may do nothing, and so may each of its buckets. `own`, `kin` and
`namesake` of an objective's slices are believed to be alike, so that each slice tells of the others;
the last two are the same for all of them.

Where influence was estimated, it may turn the whole (`with_influence`): its weight is learned too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent.planners.influence_prior import Slopes
from agent.planners.regression import Mask, Prior
from agent.weights import Cell, Floats

MIN_SHARE = 0.01
# What a log share of an objective's tokens adds to each of its slices, in points, and how sure that
# is: of the slice's own bucket, and of all others.
OWN_EFFECT, OWN_SD = 0.5, 0.35
KIN_EFFECT, KIN_SD = 0.5, 0.35
# The same for a slice without a bucket of its own, all of it by the others.
ALONE_EFFECT, ALONE_SD = 1.0, 0.5
NAMESAKE_EFFECT, NAMESAKE_SD = 0.25, 0.4
# How alike these are among the slices of an objective: the correlation of two of them.
ALIKE = 0.8
# Data of other objectives may hurt as much as an objective's own help. Those declared for it are
# accounted for already.
OTHER_SD, DECLARED_SD, CELL_SD = 0.5, 0.2, 0.1
LEVEL, LEVEL_SD, LEVEL_ALIKE = 3.0, 3.0, 0.8
ABSENT_SD = 1e-3
# How much of the way from what is declared to what influence says is believed, and how sure that is.
INFLUENCE_WEIGHT, INFLUENCE_SD = 0.15, 0.3


@dataclass(frozen=True)
class Relations:
    """The features of one objective's slices.

    `own`, `kin`, `namesake` have shape (slices, cells), `shared` (data sets and cells, cells): the
    weights of cells in each share. `prior` is over the coefficients, in this order, four for each
    slice. `turn` (cells,) is how far influence would turn the slopes, of each log share; None if
    influence was not estimated. `center` (slices, coefficients) is taken off the logarithms, so that a
    coefficient says what moving away from one mixture does, and the level of a slice says nothing of
    what data do.
    """

    slices: Sequence[str]
    own: Floats
    kin: Floats
    namesake: Floats
    shared: Floats
    prior: Prior
    center: Floats
    turn: Floats | None = None

    def features(self, shares: Floats) -> Floats:
        """Features of mixtures (n, cells) for each slice: shape (n, slices, coefficients)."""
        n, size = len(shares), len(self.slices)
        found = np.zeros((n, size, len(self.prior.mean)))
        at = np.arange(size)
        found[:, at, at] = 1.0
        floors = (self.bucket_floor, MIN_SHARE, self.bucket_floor)
        for place, groups in enumerate((self.own, self.kin, self.namesake), start=1):
            found[:, at, place * size + at] = log_shares(shares, groups, floors[place - 1])
        found[:, :, self.first_shared :] = self._shared_features(shares)[:, None, :]
        return found - self.center

    def mean_features(self, shares: Floats) -> Floats:
        """The mean of the slices' features: shape (n, coefficients)."""
        size = len(self.slices)
        parts = [np.full((len(shares), size), 1.0 / size)]
        parts.append(log_shares(shares, self.own, self.bucket_floor) / size)
        parts.append(log_shares(shares, self.kin) / size)
        parts.append(log_shares(shares, self.namesake, self.bucket_floor) / size)
        return np.hstack([*parts, self._shared_features(shares)]) - self.center.mean(axis=0)

    def _shared_features(self, shares: Floats) -> Floats:
        """Those that all slices share: shape (n, coefficients)."""
        features = log_shares(shares, self.shared)
        if self.turn is None:
            return features
        logs = np.log(shares + self.bucket_floor)
        return np.hstack([features, (logs @ self.turn)[:, None]])

    @property
    def first_shared(self) -> int:
        """The first of the coefficients that all slices share."""
        return 4 * len(self.slices)

    @property
    def bucket_floor(self) -> float:
        """What is added to the share of a bucket: a tenth of an even share, at most a hundredth."""
        return min(MIN_SHARE, 0.1 / self.own.shape[1])

    def believed_slopes(self, shares: Floats) -> Floats:
        """What a log share of each cell is believed to add to the mean beforehand: shape (cells,).

        `shares` (cells,) add up to 1, and stay so: a cell's share is taken from all.
        """
        size = len(self.slices)
        slopes = np.zeros(len(shares))
        floors = (self.bucket_floor, MIN_SHARE, self.bucket_floor)
        for place, groups in enumerate((self.own, self.kin, self.namesake), start=1):
            effects = self.prior.mean[place * size : (place + 1) * size] / size
            parts = groups * shares / (groups @ shares + floors[place - 1])[:, None]
            slopes += effects @ parts
        return np.asarray(slopes - shares * slopes.sum())

    @property
    def own_columns(self) -> Floats:
        """For each slice, the coefficients that its objective's tokens have: (slices, coefficients)."""
        size = len(self.slices)
        found = np.zeros((size, len(self.prior.mean)))
        at = np.arange(size)
        found[at, size + at] = 1.0
        found[at, 2 * size + at] = 1.0
        return found


def with_influence(related: Relations, slopes: Slopes) -> Relations:
    """The relations with one more, that all slices share: a turn from what is declared to influence.

    With g the slopes of the mean that are believed without it, at the mixture that influence was
    estimated at, and u its direction, the feature is

        trust * sum over cells b of (|g| u_b - g_b) log(bucket b)

    so that a coefficient of 1 puts influence in place of what is declared, as large as that was, and
    one of 0 leaves it out. Where both say the same there is nothing to turn.
    """
    believed = related.believed_slopes(slopes.shares)
    turn = slopes.trust * (np.linalg.norm(believed) * slopes.direction - believed)
    prior = related.prior
    size = len(prior.mean)
    covariance = np.zeros((size + 1, size + 1))
    covariance[:size, :size] = prior.covariance
    covariance[size, size] = INFLUENCE_SD**2
    turned = Prior(
        np.append(prior.mean, INFLUENCE_WEIGHT), covariance, np.append(prior.at_least_zero, True)
    )
    return replace(related, prior=turned, turn=turn)


def log_shares(shares: Floats, groups: Floats, floor: float = MIN_SHARE) -> Floats:
    """The log share of each group: shape (n, groups). `floor` is added, a hundredth by default.

    >>> log_shares(np.array([[0.24, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])).round(2).tolist()
    [[-1.39, -4.61]]
    """
    return np.asarray(np.log(shares @ groups.T + floor))


def relations(
    cells: Sequence[Cell],
    slices: Sequence[str],
    declared: Sequence[str],
    hardness: Mapping[str, float],
) -> Relations:
    """The relations of one objective's slices to all cells.

    `declared` are the objective's data sets. `hardness` is bucket -> weight in the suites: a harder
    bucket's rows hold what easier ones ask for, and more. A missing one counts as 1.
    """
    names = np.array([bucket for _, bucket in cells])
    sets = [dataset for dataset, _ in cells]
    mine = np.array([dataset in declared for dataset in sets])
    weights = np.array([hardness.get(bucket, 1.0) for _, bucket in cells])
    own, kin, namesake = (np.zeros((len(slices), len(cells))) for _ in range(3))
    for row, name in enumerate(slices):
        same = names == name
        own[row] = mine & same
        kin[row] = (mine & ~same) * weights
        if kin[row].any():
            kin[row] /= kin[row][kin[row] > 0].mean()
        if not own[row].any():
            namesake[row] = ~mine & same
    shared, deviations = _shared(cells, mine, several=len(declared) > 1)
    prior = _prior(own, kin, namesake, deviations)
    return Relations(slices, own, kin, namesake, shared, prior, np.zeros((len(slices), 1)))


def centered(related: Relations, shares: Floats) -> Relations:
    """The relations around a mixture (cells,), at which slices are believed to stand at `LEVEL`.

    Without it a level that lies far from what the prior says would be explained by everything that
    all mixtures have in common: by a little harm of each of the other data sets, say.
    """
    size = len(related.slices)
    around = related.features(shares[None])[0]
    around[:, :size] = 0.0
    return replace(related, center=around)


def _shared(cells: Sequence[Cell], mine: Mask, several: bool) -> tuple[Floats, Floats]:
    """Data sets, then cells of data sets that have several: weights of cells, and deviations.

    `mine` marks cells of the objective's own data, `several` says whether those are several data
    sets: a single one has its effect by `own` and `kin` already.
    """
    sets = np.array([dataset for dataset, _ in cells])
    rows, deviations = [], []
    for dataset in dict.fromkeys(sets.tolist()):
        inside = sets == dataset
        if not (mine & inside).any():
            deviation = OTHER_SD
        else:
            deviation = DECLARED_SD if several else ABSENT_SD
        rows.append(inside)
        deviations.append(deviation)
    for place, dataset in enumerate(sets):
        if (sets == dataset).sum() > 1:
            rows.append(np.arange(len(cells)) == place)
            deviations.append(CELL_SD)
    return np.array(rows, dtype=float), np.array(deviations)


def _prior(own: Floats, kin: Floats, namesake: Floats, shared: Floats) -> Prior:
    """The prior of all coefficients; `shared` are the deviations of those that all slices share."""
    size = len(own)
    has_own, has_kin, has_namesake = own.any(axis=1), kin.any(axis=1), namesake.any(axis=1)
    alone = has_own ^ has_kin
    own_effect, own_sd = (
        np.where(alone, ALONE_EFFECT, OWN_EFFECT),
        np.where(alone, ALONE_SD, OWN_SD),
    )
    kin_effect, kin_sd = (
        np.where(alone, ALONE_EFFECT, KIN_EFFECT),
        np.where(alone, ALONE_SD, KIN_SD),
    )
    blocks = [
        (np.full(size, LEVEL), np.full(size, LEVEL_SD), LEVEL_ALIKE),
        (has_own * own_effect, np.where(has_own, own_sd, ABSENT_SD), ALIKE),
        (has_kin * kin_effect, np.where(has_kin, kin_sd, ABSENT_SD), ALIKE),
        (has_namesake * NAMESAKE_EFFECT, np.where(has_namesake, NAMESAKE_SD, ABSENT_SD), ALIKE),
    ]
    total = 4 * size + len(shared)
    mean, covariance = np.zeros(total), np.diag(np.concatenate([np.zeros(4 * size), shared**2]))
    for place, (center, deviation, alike) in enumerate(blocks):
        block = slice(place * size, (place + 1) * size)
        mean[block] = center
        correlation = np.full((size, size), alike) + (1 - alike) * np.eye(size)
        covariance[block, block] = np.outer(deviation, deviation) * correlation
    at_least_zero = np.zeros(total, dtype=bool)
    at_least_zero[size : 4 * size] = True
    return Prior(mean, covariance, at_least_zero)
