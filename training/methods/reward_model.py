"""Training the reward model: the base's own transformer with a LoRA, and a head per objective.

    loss of an answer = mean over its labelled heads of -log p_i(level)

A head that an answer is not labelled for takes no part: its gradient is exactly zero. The loss of
a step is the mean over its answers.

Levels are drawn evenly: each objective's levels in turn, so that rare ones are seen as often as
common ones. A level that too few answers have gets no class in its head, and is named in the card.
Answers to a part of the prompts are held out; the temperature of each head is fitted on them.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from eval.calibration import (
    Floats,
    balanced_accuracy,
    calibration_error,
    fit_temperature,
    log_softmax,
)
from eval.rendering.render import ChatError, plain_chat
from eval.reward_model import (
    CARD,
    ChatReader,
    HeadCard,
    RewardModelCard,
    head_logits,
    last_states,
    load_heads,
    new_heads,
    padded,
    save_heads,
)
from mosaic.core.errors import TrainingError, UsageError
from mosaic.core.types.base import canonical_json
from mosaic.core.types.data import JudgedAnswer
from mosaic.core.types.recipes import RewardModelRecipe
from mosaic.core.types.runs import BASE, JUDGED_ANSWERS, TrainJob, TrainResult, Workplace
from prompts.levels import HIGHEST
from training.methods import hf
from training.methods.base import Progress, Stopping, never
from training.methods.batches import by_length, positions
from training.methods.checkpoints import last_checkpoint
from training.methods.failures import classify_failure
from training.methods.level_reward import SCALE, RewardScale, measure
from training.methods.sft import check_recipe, template_of
from training.models.chat_template import IGNORED
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedModel, Trainer, TrainerCallback

# With fewer answers a level gets no class: drawn evenly, each would be seen too often.
MIN_ANSWERS = 10
Cell = tuple[str, int]


RECIPE = RewardModelRecipe


@dataclass(frozen=True)
class LabelledRows:
    """Tokenised answers with their levels; `dropped` counts those that are not among them."""

    ids: list[list[int]]
    levels: list[Mapping[str, int]]
    prompts: list[str]
    dropped: dict[str, int]

    def part(self, rows: Sequence[int]) -> LabelledRows:
        """Some of the rows, in this order."""
        return LabelledRows(
            [self.ids[row] for row in rows],
            [self.levels[row] for row in rows],
            [self.prompts[row] for row in rows],
            {},
        )


def train(
    job: TrainJob, place: Workplace, progress: Progress | None = None, stopping: Stopping = never
) -> TrainResult:
    """Train a reward model and save it at `place.out`.

    Tokens are those of the answers with their chats, as often as they were drawn; there are at most
    as many as in all answers, epochs counted. `supervised` counts the labels learned from.
    Checkpoints, stopping and errors are those of `training.methods.sft.train`.
    """
    with classify_failure(Path(place.work)):
        return _train(job, place, progress, stopping)


def _train(
    job: TrainJob, place: Workplace, progress: Progress | None, stopping: Stopping
) -> TrainResult:
    from transformers import set_seed

    hf.quiet()
    base, recipe = Path(place.paths[BASE]), job.recipe
    assert isinstance(recipe, RewardModelRecipe)
    template = template_of(job, place)
    check_recipe(base, recipe, template)
    reader = ChatReader(load_tokenizer(base, template), recipe.max_length)
    rows = read_answers(Path(place.paths[JUDGED_ANSWERS]), reader)
    out = Path(place.out)
    if out.exists():
        raise UsageError(f"{out} exists already; a reward model is written to a new folder")
    learned, held = split(rows, recipe.held_out, job.seed)
    heads, left_out = head_cards(learned.levels)
    heads, unmeasured = measurable(heads, held.levels)
    left_out |= unmeasured
    if not heads:
        said = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise TrainingError(
            f"the judged answers train no head ({said}); judge more answers", "no_heads"
        )
    targets = class_numbers(learned.levels, heads)
    lengths = [len(row) for row in learned.ids]
    drawn = draw(learned.levels, heads, lengths, recipe.epochs * sum(lengths), job.seed)
    batches = by_length([lengths[row] for row in drawn], recipe.batch_size, [job.seed])
    if recipe.max_steps is not None:
        batches = batches[: recipe.max_steps * recipe.gradient_accumulation]
    order = [drawn[place] for batch in batches for place in batch]

    set_seed(job.seed)
    model = hf.load_model(base, recipe.dtype, hf.loading_of(recipe))
    watch = hf.watching_callback(job, progress, stopping)
    steps = math.ceil(len(batches) / recipe.gradient_accumulation)
    names = [head.objective for head in heads]
    started = time.monotonic()
    trainer = make_trainer(
        job, place, model, _dataset(learned, targets, order), heads, watch, steps
    )
    output = trainer.train(resume_from_checkpoint=last_checkpoint(job, Path(place.work)))
    loss = hf.finish(trainer, watch, float(output.training_loss))
    hf.save_adapter(trainer, job, out)
    trained = trainer.model.level_heads
    save_heads(trained, names, out)
    logits = head_logits(trainer.model, trained, held.ids)
    card = RewardModelCard(
        base=job.inputs[BASE],
        dtype=recipe.dtype,
        max_length=recipe.max_length,
        heads=calibrated(heads, logits, held.levels),
        left_out=left_out,
        dropped=rows.dropped,
    )
    (out / CARD).write_text(json.dumps(card.json_data(), indent=2) + "\n")
    scale = reference_scale(card.heads, logits, held.levels)
    (out / SCALE).write_text(json.dumps(scale.json_data(), indent=2) + "\n")
    seconds = time.monotonic() - started

    tokens = sum(lengths[row] for row in order)
    widths = positions(batches, [lengths[row] for row in drawn])
    return TrainResult(
        adapter=str(out),
        tokens=tokens,
        supervised=int((np.array(targets)[order] != IGNORED).sum()),
        steps=int(trainer.state.global_step),
        loss=loss,
        seconds=seconds,
        train_seconds=float(output.metrics["train_runtime"]),
        real_token_share=tokens / widths,
    )


def read_answers(path: Path, reader: ChatReader) -> LabelledRows:
    """Read and tokenise judged answers.

    Answers that cannot be rendered or are too long are dropped and counted by reason. Raises
    UsageError for a line that is not a `JudgedAnswer`, and if no answer is left.
    """
    ids: list[list[int]] = []
    levels: list[Mapping[str, int]] = []
    prompts: list[str] = []
    dropped: Counter[str] = Counter()
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            answer = JudgedAnswer.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]["msg"]
            raise UsageError(f"{path}:{number}: not a judged answer: {first}") from None
        chat = plain_chat(answer.messages)
        try:
            row = reader.ids(chat)
        except ChatError as error:
            dropped[error.reason] += 1
            continue
        ids.append(row)
        levels.append(answer.levels)
        asked = [m for m in chat if m["role"] != "assistant"]
        prompts.append(canonical_json([[m["role"], m["content"]] for m in asked]))
    if not ids:
        raise UsageError(f"{path}: no judged answer can be read ({dict(dropped)})")
    return LabelledRows(ids, levels, prompts, dict(dropped))


def split(rows: LabelledRows, share: float, seed: int) -> tuple[LabelledRows, LabelledRows]:
    """Rows to learn from, and about a share of the prompts held out: no prompt is in both."""
    learned: list[int] = []
    held: list[int] = []
    for number, prompt in enumerate(rows.prompts):
        digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
        fraction = int.from_bytes(digest[:8], "big") / 2**64
        (held if fraction < share else learned).append(number)
    return rows.part(learned), rows.part(held)


def head_cards(levels: Sequence[Mapping[str, int]]) -> tuple[list[HeadCard], dict[str, str]]:
    """A head per objective, in the order of names; objectives left out, with the reason.

    A head's classes are the levels that at least ten answers have.
    """
    counts: dict[str, Counter[int]] = {}
    for answer in levels:
        for objective, level in answer.items():
            counts.setdefault(objective, Counter())[level] += 1
    heads, left_out = [], {}
    for objective, count in sorted(counts.items()):
        classes = sorted(level for level, n in count.items() if n >= MIN_ANSWERS)
        if len(classes) < 2:
            left_out[objective] = f"fewer than two levels have {MIN_ANSWERS} answers"
            continue
        head = HeadCard(
            objective=objective,
            classes=classes,
            answers={level: count[level] for level in classes},
            absent=[level for level in range(1, HIGHEST + 1) if level not in classes],
        )
        heads.append(head)
    return heads, left_out


def measurable(
    heads: Sequence[HeadCard], held: Sequence[Mapping[str, int]]
) -> tuple[list[HeadCard], dict[str, str]]:
    """The heads that held-out answers have levels of; those left out, with the reason.

    The scale of a reward is measured on held-out answers.
    """
    kept, left_out = [], {}
    for head in heads:
        if any(head.objective in answer for answer in held):
            kept.append(head)
        else:
            left_out[head.objective] = "no held-out answer was judged under it"
    return kept, left_out


def class_numbers(
    levels: Sequence[Mapping[str, int]], heads: Sequence[HeadCard]
) -> list[list[int]]:
    """The class of each answer under each head, -100 where it has none: (answers, heads)."""
    numbers = []
    for answer in levels:
        row = []
        for head in heads:
            level = answer.get(head.objective)
            row.append(head.classes.index(level) if level in head.classes else IGNORED)
        numbers.append(row)
    return numbers


def draw(
    levels: Sequence[Mapping[str, int]],
    heads: Sequence[HeadCard],
    lengths: Sequence[int],
    tokens: int,
    seed: int,
) -> list[int]:
    """Answers to learn from, by number, within a budget of tokens.

    Each level of each head has its turn, and gives the next of its answers in an order that the
    seed shuffles anew whenever all have been drawn. The first that does not fit ends it.

    >>> safety = HeadCard(objective="safety", classes=[1, 5], answers={1: 1, 5: 2}, absent=[2, 3, 4])
    >>> draw([{"safety": 5}, {"safety": 1}, {"safety": 5}], [safety], [4, 4, 4], 16, seed=1)
    [1, 2, 1, 0]
    """
    generator = random.Random(seed)
    cells: dict[Cell, list[int]] = {}
    for head in heads:
        for level in head.classes:
            own = [n for n, answer in enumerate(levels) if answer.get(head.objective) == level]
            cells[head.objective, level] = own
    waiting: dict[Cell, list[int]] = {cell: [] for cell in cells}
    drawn: list[int] = []
    while True:
        for cell, own in cells.items():
            if not waiting[cell]:
                waiting[cell] = generator.sample(own, len(own))
            row = waiting[cell].pop()
            tokens -= lengths[row]
            if tokens < 0:
                return drawn
            drawn.append(row)


def masked_loss(logits: Sequence[Tensor], classes: Tensor) -> Tensor:
    """The mean over answers of the mean cross-entropy of their labelled heads, in nats.

    `logits` holds (answers, classes) per head, `classes` has shape (answers, heads) with -100 for
    no label. Answers without any label do not count.

    An answer at p = 1/2 under one head and 1/4 under another, a third head without a label:
    (log 2 + log 4) / 2 = 1.04.

    >>> import torch
    >>> even, quarter = torch.zeros(1, 2), torch.zeros(1, 4)
    >>> round(masked_loss([even, quarter, even], torch.tensor([[0, 3, -100]])).item(), 2)
    1.04
    """
    import torch

    losses = []
    for number, values in enumerate(logits):
        own = classes[:, number]
        # A label of -100 has a loss of exactly 0, and so has its gradient.
        loss = torch.nn.functional.cross_entropy(
            values, own, ignore_index=IGNORED, reduction="none"
        )
        losses.append(loss)
    labelled = (classes != IGNORED).sum(dim=1)
    per_answer = torch.stack(losses).sum(dim=0) / labelled.clamp(min=1)
    return per_answer.sum() / (labelled > 0).sum().clamp(min=1)


def calibrated(
    heads: Sequence[HeadCard], logits: Sequence[Floats], levels: Sequence[Mapping[str, int]]
) -> list[HeadCard]:
    """The heads with the temperatures and figures of held-out answers.

    A head without a held-out answer of its classes keeps temperature 1.
    """
    numbers = class_numbers(levels, heads)
    made = []
    for place, (head, values) in enumerate(zip(heads, logits, strict=True)):
        own = [row for row, classes in enumerate(numbers) if classes[place] != IGNORED]
        if not own:
            made.append(head)
            continue
        true = np.array([numbers[row][place] for row in own])
        temperature = fit_temperature(values[own], true)
        probabilities = np.exp(log_softmax(values[own] / temperature))
        said = probabilities.argmax(axis=1)
        found = {
            "temperature": temperature,
            "held_out": len(own),
            "balanced_accuracy": balanced_accuracy(true.tolist(), said.tolist()),
            "calibration_error": calibration_error(
                probabilities.max(axis=1).tolist(), (said == true).tolist()
            ),
        }
        made.append(head.model_copy(update=found))
    return made


def reference_scale(
    heads: Sequence[HeadCard], logits: Sequence[Floats], levels: Sequence[Mapping[str, int]]
) -> RewardScale:
    """The scale of the held-out answers, each under the objectives that it was judged under."""
    references: list[dict[str, dict[int, float]]] = [{} for _ in levels]
    for head, values in zip(heads, logits, strict=True):
        probabilities = np.exp(log_softmax(values / head.temperature))
        for number, answer in enumerate(levels):
            if head.objective in answer:
                own = probabilities[number].tolist()
                references[number][head.objective] = dict(zip(head.classes, own, strict=True))
    return measure(references)


def _dataset(rows: LabelledRows, classes: list[list[int]], order: Sequence[int]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "ids": [rows.ids[row] for row in order],
            "classes": [classes[row] for row in order],
        }
    )


def _collate(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
    import torch

    ids, mask = padded([row["ids"] for row in rows])
    return {"ids": ids, "mask": mask, "classes": torch.tensor([row["classes"] for row in rows])}


def make_trainer(
    job: TrainJob,
    place: Workplace,
    model: PreTrainedModel,
    dataset: Dataset,
    heads: Sequence[HeadCard],
    callback: TrainerCallback,
    steps: int,
) -> Trainer:
    """A trainer of the model with its LoRA; the heads stand in it as `level_heads`."""
    from peft import get_peft_model
    from transformers import TrainingArguments

    recipe = job.recipe
    adapted = get_peft_model(model, hf.lora(Path(place.paths[BASE]), recipe))
    adapted.level_heads = new_heads(model, [len(head.classes) for head in heads])
    if recipe.gradient_checkpointing:
        adapted.enable_input_require_grads()
    settings = TrainingArguments(
        **hf.arguments(job, place, steps),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
    )
    with hf.trackers(recipe.report_to):
        trainer = level_trainer()(
            model=adapted,
            args=settings,
            train_dataset=dataset,
            data_collator=_collate,
            callbacks=[callback],
        )
    trainer.names = [head.objective for head in heads]
    hf.silence(trainer)
    return trainer


@lru_cache
def level_trainer() -> type[Trainer]:
    """transformers' `Trainer` with the masked loss; its checkpoints hold the heads too."""
    from transformers import Trainer

    class LevelTrainer(Trainer):
        names: list[str]
        model_accepts_loss_kwargs = False

        def compute_loss(
            self,
            model: nn.Module,
            inputs: dict[str, Tensor],
            return_outputs: bool = False,
            num_items_in_batch: Tensor | int | None = None,
        ) -> Tensor:
            states = last_states(model, inputs["ids"], inputs["mask"])
            return masked_loss([head(states) for head in model.level_heads], inputs["classes"])

        def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
            assert output_dir is not None
            self.model.save_pretrained(output_dir)
            save_heads(self.model.level_heads, self.names, Path(output_dir))

        def _load_from_checkpoint(
            self, resume_from_checkpoint: str, model: nn.Module | None = None
        ) -> None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_heads(self.model.level_heads, self.names, Path(resume_from_checkpoint))

    return LevelTrainer
