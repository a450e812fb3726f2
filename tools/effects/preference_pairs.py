"""Preference pairs as a step: of the scored answers to a prompt, the two that a recipe's rule takes.

The tokens of a stage pay for each answer that is drawn, and for both answers of the pair that a
prompt may give, for every epoch.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import JsonObject
from mosaic.core.types.events import PairedEvent
from mosaic.core.types.practice_records import FormPairs, PairsFiled
from mosaic.core.types.preferences import PairReport
from mosaic.core.types.runs import DpoRecipe, Sampling
from tools.effects.practice import (
    Answered,
    Batch,
    LeftOut,
    PracticePrompt,
    PracticeTool,
    digests,
)
from training.data.preferences import (
    candidates,
    choose_pair,
    opposed,
    spreads,
    yields,
)
from training.methods.preference_rows import PreferenceRow, conversation, write_pairs


@dataclass(frozen=True)
class PairCosts:
    """What pairs of answers may cost: both conversations, once per epoch."""

    practice: PracticeTool
    recipe: DpoRecipe

    def dearest(self, practice: PracticePrompt) -> int:
        return 2 * self.practice.longest(practice) * self.recipe.epochs

    def owed(self, steps: Steps, batch: Batch) -> int:
        """See `Costs`: the longest pair that each prompt of the batch can still give."""
        total = 0
        for known in self.practice.read(steps, batch, self.recipe, LeftOut()):
            lengths = [0]
            for chosen, rejected in candidates(known.rewards, self.recipe):
                pair = (known.usable[chosen], known.usable[rejected])
                lengths.append(sum(known.tokens[number] for number in pair))
            total += max(lengths)
        return total * self.recipe.epochs


@dataclass(frozen=True)
class PairTool:
    """Draws answers and pairs them."""

    practice: PracticeTool

    def gather(
        self,
        steps: Steps,
        adapter: str | None,
        recipe: DpoRecipe,
        tokens: int,
        weights: Mapping[str, float],
        seed: int,
    ) -> PairsFiled:
        """Pairs that cost at most `tokens` to sample and to train on. See `draw`."""
        batches = self.draw(steps, adapter, recipe, tokens, weights, seed)
        return self.form(steps, batches, recipe, tokens)

    def draw(
        self,
        steps: Steps,
        adapter: str | None,
        recipe: DpoRecipe,
        tokens: int,
        weights: Mapping[str, float],
        seed: int,
    ) -> list[Batch]:
        """Answers as a recipe draws them. See `PracticeTool.draw`."""
        sampling = Sampling(
            n=recipe.n, temperature=recipe.temperature, top_p=recipe.top_p, seed=seed
        )
        costs = PairCosts(self.practice, recipe)
        return self.practice.draw(steps, adapter, sampling, tokens, weights, costs)

    def form(
        self, steps: Steps, batches: Sequence[Batch], recipe: DpoRecipe, tokens: int
    ) -> PairsFiled:
        """The pairs of answers that a recipe's rule chooses, at most what `tokens` pay for."""
        inputs = FormPairs(
            base=self.practice.base_digest,
            responses=[batch.responses for batch in batches],
            scores=[batch.scores for batch in batches],
            prompts=[digest for batch in batches for digest in digests(batch.prompts)],
            rule=_rule_of(recipe),
            tokens=tokens,
        )

        def effect() -> Outcome[PairsFiled]:
            left_out = LeftOut()
            known: list[Answered] = []
            for batch in batches:
                known += self.practice.read(steps, batch, recipe, left_out)
            spread = spreads(one.rewards for one in known)
            rows = []
            for one in known:
                row = _paired(one, spread, recipe)
                if row is not None:
                    rows.append(row)
            asked = [practice for batch in batches for practice in batch.prompts]
            sampled = sum(r.n_tokens for one in known for r in one.responses)
            # An answer read back as text may have more tokens than it was drawn with.
            formed = len(rows)
            while rows and sampled + recipe.epochs * sum(row.tokens for row in rows) > tokens:
                rows.pop()
            report = PairReport(
                prompts=len(asked),
                answers=len(asked) * recipe.n,
                pairs=len(rows),
                unpaid=formed - len(rows),
                cut=left_out.cut,
                unscored=left_out.unscored,
                unlearnable=dict(sorted(left_out.unlearnable.items())),
                yields=yields([one.rewards for one in known], recipe.margin),
                opposed=opposed(practice.objectives for practice in self.practice.prompts),
                slices=dict(sorted(Counter(row.slice for row in rows).items())),
                sampled=sampled,
                trained=recipe.epochs * sum(row.tokens for row in rows),
            )
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "pairs.parquet"
                write_pairs(rows, path)
                digest = steps.store.put_file(path)
            event = PairedEvent(pairs=digest, report=report)
            return Outcome(PairsFiled(pairs=digest, report=report), [event])

        return steps.run(inputs, effect)


def _paired(
    known: Answered, spread: Mapping[str, float], recipe: DpoRecipe
) -> PreferenceRow | None:
    """The pair of a prompt, if two of its answers make one."""
    allowed = candidates(known.rewards, recipe)
    pair = choose_pair(known.rewards, allowed, spread, recipe)
    if pair is None:
        return None
    prompt = known.practice.prompt
    chosen, rejected = known.usable[pair.chosen], known.usable[pair.rejected]
    asked, better = conversation(prompt, known.responses[chosen].answers)
    _, worse = conversation(prompt, known.responses[rejected].answers)
    return PreferenceRow(
        id=prompt.id,
        slice=known.practice.slice,
        prompt=asked,
        chosen=better,
        rejected=worse,
        chosen_tokens=known.tokens[chosen],
        rejected_tokens=known.tokens[rejected],
        gap=pair.gap,
    )


def _rule_of(recipe: DpoRecipe) -> JsonObject:
    """What of a recipe decides which answers make a pair, and what they cost."""
    fields = {"n", "rule", "objective", "gap", "margin", "sufficient", "epochs", "max_length"}
    return recipe.model_dump(mode="json", include=fields)
