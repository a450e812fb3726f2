"""The effect of a little more of each bucket on each objective, around one trained model.

A round selects T tokens, a share s_j of them from bucket j, and trains on the summed loss of what
it selected. Divided by T that is

    L = sum_j s_j l_j          l_j = summed loss of the bucket's rows / their tokens

and a share of d more for bucket j changes the loss of objective o by -d grad_o^T H^-1 grad l_j. The
tokens of prompts cost as much as those of answers, so they count in l_j although they are not
learned. Filed is the fall of the loss per percent, d = 0.01.

The standard error has two parts: rows of a bucket, as a ratio of sums, and prompts of a suite. Both
are of one gradient's projection on the other's mean, so that no gradient is kept per sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eval.steering_loss import BATCH, Contrast, mean_loss
from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.types.influence import BucketInfluence, Effect, SteeringPrompts
from training.influence.ekfac import Covariances, Curvature, SecondMoments, Variant
from training.influence.gradients import (
    Flows,
    Layers,
    Weights,
    add,
    along,
    flows,
    stacked,
    trained_layers,
    weighted_sums,
)
from training.influence.sequences import Batch, batches, drawn_labels, logits_of, summed_loss
from training.influence.settings import InfluenceConfig
from training.methods.base import Stopping, never

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Cell = tuple[str, str]
Floats = npt.NDArray[np.float64]
# A variance needs two.
MIN_ROWS = MIN_PROMPTS = 2
PERCENT = 0.01
# Two for the curvature, one for gradients; gradients along which prompts and rows are read.
ROW_PASSES, PROMPT_PASSES = 3, 2
DRAW_SEED = 20260201


@dataclass(frozen=True)
class SampledRows:
    """Tokenised rows with the bucket of each, and what its loss is weighted by in training."""

    ids: list[list[int]]
    labels: list[list[int]]
    weights: list[float]
    cells: list[Cell]

    def of_cell(self) -> dict[Cell, list[int]]:
        """Bucket -> numbers of its rows."""
        found: dict[Cell, list[int]] = {}
        for row, cell in enumerate(self.cells):
            found.setdefault(cell, []).append(row)
        return found


@dataclass(frozen=True)
class Estimated:
    """What `estimate` found: buckets with at least two rows, and the steering loss of each suite.

    `tokens` passed through the model, each pass counted.
    """

    buckets: list[BucketInfluence]
    losses: dict[str, float]
    tokens: int


def estimate(
    model: PreTrainedModel,
    rows: SampledRows,
    shares: Mapping[Cell, float],
    suites: Mapping[str, Sequence[Contrast]],
    traded: Sequence[str],
    settings: InfluenceConfig,
    variant: Variant = "inverse",
    stopping: Stopping = never,
) -> Estimated:
    """Estimate the effects. The model's trained layers are those whose weights require gradients.

    `shares` are those of the tokens that the model was trained on. `suites` holds at least two
    contrasts of every objective in it; `traded` are the objectives that have data, and the mean
    loss of those in `suites` is estimated too. Raises UsageError if no bucket has two rows, and
    StopRequested between two batches once `stopping` says so.
    """
    model.eval()
    work = _Work(model, trained_layers(model), rows, shares, settings, stopping)
    if not work.cells:
        raise UsageError(
            f"influence: no bucket has {MIN_ROWS} sampled rows; raise influence.tokens_per_bucket"
        )
    made = list(batches(rows.ids, rows.labels, settings.batch_size, model.device))
    curvature = work.curvature(made)
    losses, gradients = {}, {}
    for objective, contrasts in suites.items():
        losses[objective], gradients[objective] = work.reference(contrasts)
    directions = {o: curvature.apply(g, variant) for o, g in gradients.items()}
    fall_of_rows, domains = work.rows_along(made, directions)
    turned = {cell: curvature.apply(domain, variant) for cell, domain in domains.items()}
    fall_of_prompts = {}
    for objective, contrasts in suites.items():
        fall_of_prompts[objective] = work.prompts_along(contrasts, turned)
    buckets = []
    for number, (cell, members) in enumerate(work.cells.items()):
        tokens = np.array([len(rows.ids[row]) for row in members], dtype=np.float64)
        effects, by_row, of_prompts = {}, [], []
        for objective in suites:
            along_rows = fall_of_rows[objective][members]
            variance = _variance_of_mean(fall_of_prompts[objective][:, number])
            effects[objective] = _effect(along_rows, tokens, variance)
            if objective in traded:
                by_row.append(along_rows)
                of_prompts.append(variance)
        # One row moves all objectives at once; the prompts of two suites are independent.
        mean = np.mean(by_row, axis=0)
        together = _effect(mean, tokens, math.fsum(of_prompts) / len(of_prompts) ** 2)
        dataset, bucket = cell
        found = BucketInfluence(
            dataset=dataset,
            bucket=bucket,
            share=shares.get(cell, 0.0),
            rows=len(members),
            tokens=int(tokens.sum()),
            effects=effects,
            mean=together,
        )
        buckets.append(found)
    return Estimated(buckets, losses, passed_tokens(rows, suites))


def passed_tokens(rows: SampledRows, suites: Mapping[str, Sequence[Contrast]]) -> int:
    """The tokens of all passes: three over the rows, two over what the contrasts read."""
    tokens = ROW_PASSES * sum(len(row) for row in rows.ids)
    for contrasts in suites.values():
        tokens += PROMPT_PASSES * sum(len(one.context) for one in contrasts)
    return tokens


def _effect(along_rows: Floats, tokens: Floats, prompt_variance: float) -> Effect:
    """The ratio of sums with its error: rows by the usual residuals, prompts as given."""
    total, count = tokens.sum(), len(tokens)
    ratio = along_rows.sum() / total
    residuals = along_rows - ratio * tokens
    rows_variance = count / (count - 1) * float((residuals**2).sum()) / total**2
    error = math.sqrt(rows_variance + prompt_variance)
    return Effect(value=round(float(ratio) * PERCENT, 9), standard_error=round(error * PERCENT, 9))


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1)) / len(values)


@dataclass(frozen=True)
class _Work:
    """One model with the rows to pass through it."""

    model: PreTrainedModel
    layers: Layers
    rows: SampledRows
    shares: Mapping[Cell, float]
    settings: InfluenceConfig
    stopping: Stopping

    def _flows(self, loss: Callable[[], Tensor], shape: tuple[int, int]) -> Flows:
        if self.stopping():
            raise StopRequested("stopped while the influence of buckets was estimated")
        return flows(self.layers, loss, shape)

    @property
    def cells(self) -> dict[Cell, list[int]]:
        """Buckets with rows enough for a variance."""
        found = {}
        for cell, members in sorted(self.rows.of_cell().items()):
            if len(members) >= MIN_ROWS:
                found[cell] = members
        return found

    def curvature(self, made: Sequence[Batch]) -> Curvature:
        """EK-FAC of the loss that the model was trained on, with labels drawn from the model.

        Raises UsageError if no row lies in a bucket that the model was trained on.
        """
        weights = self._training_weights()
        if not any(weights):
            raise UsageError(
                "influence: no sampled row is from a bucket that the adapter was trained on; raise "
                "influence.tokens_per_bucket"
            )
        covariances = Covariances()
        drawn: list[Tensor] = []
        for batch in made:
            passed = self._drawing(batch, drawn)
            scale = _of_batch(weights, batch)
            covariances.add(passed, batch.reach.float(), scale)
        moments = SecondMoments(covariances.bases())
        for batch, labels in zip(made, drawn, strict=True):
            moments.add(self._passed(batch, labels), _of_batch(weights, batch))
        return moments.curvature(self.settings.damping)

    def _training_weights(self) -> list[float]:
        """What each row stands for in the training loss: its bucket's share over the row tokens."""
        weights = [0.0] * len(self.rows.ids)
        for cell, members in self.rows.of_cell().items():
            tokens = sum(len(self.rows.ids[row]) for row in members)
            for row in members:
                weights[row] = self.rows.weights[row] * self.shares.get(cell, 0.0) / tokens
        return weights

    def _drawing(self, batch: Batch, drawn: list[Tensor]) -> Flows:
        def loss() -> Tensor:
            logits = logits_of(self.model, batch)
            drawn.append(drawn_labels(logits, batch, DRAW_SEED))
            return summed_loss(logits, drawn[-1])

        return self._flows(loss, batch.shape)

    def _passed(self, batch: Batch, labels: Tensor) -> Flows:
        def loss() -> Tensor:
            return summed_loss(logits_of(self.model, batch), labels)

        return self._flows(loss, batch.shape)

    def rows_along(
        self, made: Sequence[Batch], directions: Mapping[str, Weights]
    ) -> tuple[dict[str, Floats], dict[Cell, Weights]]:
        """Objective -> each row's gradient along its direction (rows,); bucket -> mean gradient.

        The mean is per token of the bucket's rows.
        """
        import torch

        projected = {o: np.zeros(len(self.rows.ids)) for o in directions}
        domains: dict[Cell, Weights] = {cell: {} for cell in self.cells}
        weights = torch.tensor(self.rows.weights, device=self.model.device)
        together = stacked(directions.values())
        for batch in made:
            passed = self._passed(batch, batch.labels)
            own = weights[batch.rows]
            values = (along(passed, together) * own[:, None]).double().cpu().numpy()
            for number, objective in enumerate(directions):
                projected[objective][batch.rows] = values[:, number]
            for cell, domain in domains.items():
                inside = torch.tensor([self.rows.cells[row] == cell for row in batch.rows])
                if inside.any():
                    add(domain, weighted_sums(passed, own * inside.to(own)))
        for cell, domain in domains.items():
            tokens = sum(len(self.rows.ids[row]) for row in self.cells[cell])
            for name in domain:
                domain[name] = domain[name] / tokens
        return projected, domains

    def reference(self, contrasts: Sequence[Contrast]) -> tuple[float, Weights]:
        """The mean steering loss of a suite and its gradient."""
        import torch

        total: Weights = {}
        losses = []
        for batch in self._contrast_batches(contrasts):
            passed, loss = self._contrasted(batch)
            losses.append(loss)
            add(total, weighted_sums(passed, torch.ones(len(batch), device=self.model.device)))
        gradient = {name: value / len(contrasts) for name, value in total.items()}
        return math.fsum(losses) / len(contrasts), gradient

    def prompts_along(
        self, contrasts: Sequence[Contrast], turned: Mapping[Cell, Weights]
    ) -> Floats:
        """Each contrast's gradient along each bucket's direction, shape (contrasts, buckets)."""
        together = stacked(turned.values())
        found = []
        for batch in self._contrast_batches(contrasts):
            passed, _ = self._contrasted(batch)
            found.append(along(passed, together).double().cpu().numpy())
        return np.concatenate(found)

    def _contrast_batches(self, contrasts: Sequence[Contrast]) -> Iterator[list[Contrast]]:
        order = sorted(contrasts, key=lambda one: len(one.context))
        size = min(self.settings.batch_size, BATCH)
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _contrasted(self, batch: Sequence[Contrast]) -> tuple[Flows, float]:
        """What passes for a batch of contrasts, and their summed loss."""
        values: list[float] = []

        def loss() -> Tensor:
            summed = mean_loss(self.model, batch) * len(batch)
            values.append(float(summed.detach()))
            return summed

        shape = len(batch), max(len(one.context) for one in batch)
        return self._flows(loss, shape), values[0]


def _of_batch(weights: Sequence[float], batch: Batch) -> Tensor:
    import torch

    return torch.tensor([weights[row] for row in batch.rows], device=batch.ids.device)


def steering_prompts(used: int, dropped: Mapping[str, str], loss: float | None) -> SteeringPrompts:
    """Counts of a suite, its dropped prompts by reason."""
    reasons: dict[str, int] = {}
    for reason in dropped.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return SteeringPrompts(used=used, dropped=reasons, loss=loss)
