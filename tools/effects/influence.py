"""Influence as a step: the effect of a little more of each bucket, around one trained adapter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_loading import free_memory, load_base
from eval.steering_loss import Contrasts, contrasts
from eval.suite import Suite, prompts_digest
from mosaic.core.errors import UsageError
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.data import CurationReport, Mixture
from mosaic.core.types.influence import BucketInfluence, Influence, SteeringPrompts, combine
from mosaic.core.types.records import EstimateInfluence, InfluenceEstimated
from mosaic.core.types.runs import LoraRecipe, Trial
from tools.effects.references import References, with_judged
from training.data.curate import curate, write_training_set
from training.data.pool import Pool
from training.influence.estimate import (
    MIN_PROMPTS,
    Cell,
    SampledRows,
    estimate,
    steering_prompts,
)
from training.influence.settings import InfluenceConfig
from training.methods.base import Stopping, never
from training.methods.hf import loading_of, quiet
from training.models.chat_template import ChatError, tokenise
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows to estimate from are drawn apart from those of trainings: most of them are new to the adapter.
SAMPLE_SEED = 71_993


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter by its digest, how it was trained, and the shares of the tokens that it saw."""

    digest: str
    recipe: LoraRecipe
    shares: Mapping[Cell, float]

    @classmethod
    def of(cls, trial: Trial) -> TrainedAdapter:
        """The adapter that a trial trained on its mixture."""
        adapter = trial.mixture_adapter
        assert adapter is not None
        assert trial.curation is not None
        assert trial.spec.recipe is not None
        return cls(adapter.digest, trial.spec.recipe, delivered_shares(trial.curation))


@dataclass(frozen=True)
class InfluenceTool:
    """Estimates influence on one base model, given by its folder and digest.

    `template` is a file that replaces the base's chat template; `base_digest` covers both. `suites`
    are the steering suites by objective, `traded` the objectives that have data. Rows are drawn
    from `pool` at `min_quality` or above.
    """

    base_model: Path
    base_digest: str
    pool: Pool
    suites: Mapping[str, Suite]
    traded: Sequence[str]
    min_quality: int
    settings: InfluenceConfig
    template: Path | None = None

    def influence(
        self, steps: Steps, trials: Sequence[Trial], judged: Sequence[Trial]
    ) -> Influence:
        """The influence of every bucket around the adapters of trials of one plan.

        Prompts without reference answers get them from what the trials `judged` answered. Each
        adapter is a step of its own. Raises UsageError if no objective that has data has prompts
        enough whose references differ, or no bucket has rows enough.
        """
        references = with_judged(steps.store, self.suites, judged)
        return combine([self._around(steps, trial, references) for trial in trials])

    def look_ahead(
        self, steps: Steps, trials: Sequence[Trial], judged: Sequence[Trial]
    ) -> Influence:
        """The same without writing anything: what is filed is read, the rest computed."""
        references = with_judged(steps.store, self.suites, judged)
        found = []
        for trial in trials:
            adapter = TrainedAdapter.of(trial)
            if steps.finished(self._inputs(adapter, references)):
                found.append(self._around(steps, trial, references))
            else:
                found.append(self._estimated(steps, adapter, references))
        return combine(found)

    def _around(self, steps: Steps, trial: Trial, references: References) -> Influence:
        adapter = TrainedAdapter.of(trial)

        def effect() -> Outcome[InfluenceEstimated]:
            found = self._estimated(steps, adapter, references)
            digest = steps.store.put_json(found.json_data())
            return Outcome(InfluenceEstimated(influence=digest))

        filed = steps.run(self._inputs(adapter, references), effect)
        return Influence.model_validate(steps.store.get_json(filed.influence))

    def _inputs(self, adapter: TrainedAdapter, references: References) -> EstimateInfluence:
        return EstimateInfluence(
            base=self.base_digest,
            adapter=adapter.digest,
            pool=self.pool.digest,
            sample=self.sample,
            shares=nested(adapter.shares),
            references={name: prompts_digest(prompts) for name, prompts in references.items()},
            traded=list(self.traded),
            settings=self.settings.json_data(),
        )

    @property
    def sample(self) -> Mixture:
        """The mixture of the rows to estimate from: equally many tokens of every bucket."""
        held: dict[str, list[str]] = {}
        for dataset, bucket in self._cells():
            held.setdefault(dataset, []).append(bucket)
        total = sum(len(buckets) for buckets in held.values())
        if total == 0:
            raise UsageError(
                f"influence: the pool has no row of quality {self.min_quality} or above; "
                "lower limits.min_quality"
            )
        weights = {}
        for dataset, buckets in held.items():
            weights[dataset] = dict.fromkeys(buckets, 1 / len(buckets))
        return Mixture(
            ratios={dataset: len(buckets) / total for dataset, buckets in held.items()},
            bucket_weights=weights,
            budget=self.settings.tokens_per_bucket * total,
            seed=SAMPLE_SEED,
            min_quality=self.min_quality,
            topup=False,
        )

    def _cells(self) -> list[Cell]:
        """Buckets of the pool that have rows."""
        cells = []
        for dataset, per_bucket in self.pool.stock(self.min_quality).items():
            cells += [(dataset, bucket) for bucket, found in per_bucket.items() if found.rows]
        return cells

    def _estimated(
        self, steps: Steps, adapter: TrainedAdapter, references: References
    ) -> Influence:
        folder = steps.store.path(adapter.digest)
        if not folder.exists():
            raise UsageError(
                f"influence: the adapter {adapter.digest[:12]} of the plan executed last was "
                "deleted; take influence out of the config, or start a new run with `keep: all`"
            )
        return self.estimate_around(folder, adapter, references, steps.stopping)

    def estimate_around(
        self,
        folder: Path,
        adapter: TrainedAdapter,
        references: References,
        stopping: Stopping = never,
    ) -> Influence:
        """The influence around the adapter in a folder."""
        made = self.contrasts(references)
        suites = {name: made[name].usable for name in self._readable(made)}
        rows = self.rows()
        with trainable(self.base_model, folder, adapter.recipe) as model:
            found = estimate(
                model, rows, adapter.shares, suites, self.traded, self.settings, stopping=stopping
            )
        prompts: dict[str, SteeringPrompts] = {}
        for name, known in made.items():
            loss = found.losses.get(name)
            prompts[name] = steering_prompts(len(known.usable), known.dropped, loss)
        return Influence(
            adapters=[adapter.digest],
            prompts=prompts,
            buckets=found.buckets,
            without_rows=self._missing(found.buckets),
            tokens=found.tokens,
        )

    @property
    def given(self) -> References:
        """The steering prompts with the references of their suites alone."""
        return {name: suite.prompts for name, suite in self.suites.items()}

    def contrasts(self, references: References) -> dict[str, Contrasts]:
        """The contrasts of every objective's prompts."""
        tokenizer = load_tokenizer(self.base_model, self.template)
        return {name: contrasts(tokenizer, prompts) for name, prompts in references.items()}

    def _readable(self, made: Mapping[str, Contrasts]) -> list[str]:
        """Objectives with contrasts enough. UsageError if none of those that have data is among them."""
        readable = [name for name, known in made.items() if len(known.usable) >= MIN_PROMPTS]
        if not set(readable) & set(self.traded):
            counts = ", ".join(f"{name} {len(made[name].usable)}" for name in self.traded)
            raise UsageError(
                "influence: no objective that has data has at least "
                f"{MIN_PROMPTS} steering prompts with a good and a bad answer that differ "
                f"({counts}); add `good` and `bad` to a steering.jsonl, or take influence out of "
                "the config"
            )
        return readable

    def rows(self) -> SampledRows:
        """The sampled rows as the trainer would see them."""
        import pyarrow.parquet as pq

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sample.parquet"
            write_training_set(self.pool, curate(self.pool, self.sample), path)
            table = pq.read_table(path, use_threads=False)
        if table.num_rows == 0:
            raise UsageError(
                f"influence.tokens_per_bucket: {self.settings.tokens_per_bucket} tokens hold no "
                "row of the pool; raise it"
            )
        tokenizer = load_tokenizer(self.base_model, self.template)
        try:
            ids, labels = tokenise(tokenizer, table["messages"].to_pylist())
        except ChatError as error:
            row = table["id"][error.position]
            raise UsageError(
                f"influence: the chat template or tokenizer of base_model refuses row {row}: "
                f"{error.reason}; build the pool again without this row, or mend the template"
            ) from None
        cells = list(zip(table["dataset"].to_pylist(), table["bucket"].to_pylist(), strict=True))
        return SampledRows(ids, labels, table["weight"].to_pylist(), cells)

    def _missing(self, buckets: Sequence[BucketInfluence]) -> list[Cell]:
        """Buckets of the pool that have no estimate."""
        found = {(bucket.dataset, bucket.bucket) for bucket in buckets}
        every = []
        for dataset, per_bucket in self.pool.stock(self.min_quality).items():
            every += [(dataset, bucket) for bucket in per_bucket]
        return [cell for cell in every if cell not in found]


def delivered_shares(report: CurationReport) -> dict[Cell, float]:
    """Bucket -> its share of the tokens that were selected."""
    total = max(1, report.total.selected)
    shares = {}
    for dataset, per_dataset in report.datasets.items():
        for bucket, delivered in per_dataset.buckets.items():
            shares[dataset, bucket] = delivered.selected / total
    return shares


def nested(shares: Mapping[Cell, float]) -> dict[str, dict[str, float]]:
    """Data set -> bucket -> share."""
    found: dict[str, dict[str, float]] = {}
    for (dataset, bucket), share in shares.items():
        found.setdefault(dataset, {})[bucket] = share
    return found


@contextmanager
def trainable(base: Path, adapter: Path, recipe: LoraRecipe) -> Iterator[PreTrainedModel]:
    """A base model with an adapter whose matrices require gradients, loaded as for its training.

    The adapter's matrices are in float32 in any case. Memory on a GPU is given back: a training or a
    server may need it next. Raises UsageError if there is too little of it.
    """
    import torch
    from peft import PeftModel

    quiet()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = None
    try:
        model = load_base(base, recipe.dtype, loading_of(recipe), device)
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        yield model
    except torch.OutOfMemoryError:
        raise UsageError(
            "influence: the GPU's memory does not hold the model and one batch of sequences; "
            "lower influence.batch_size"
        ) from None
    finally:
        del model
        free_memory()
