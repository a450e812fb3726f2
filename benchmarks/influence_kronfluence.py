"""The same influence scores by kronfluence, from the same labels: a check by other people's code."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from training.influence.ekfac import Covariances, SecondMoments
from training.influence.gradients import along, flows, stacked, trained_layers
from training.influence.sequences import Batch, batches, drawn_labels, logits_of, summed_loss

DAMPING = 0.1
VOCABULARY, LAYERS, QUERIES = 60, 4, 5


@dataclass(frozen=True)
class Comparison:
    """Largest difference of two scores over the largest score; times as `theirs / ours`."""

    error: float
    slower: float
    layers: int


def compare(folder: Path, count: int) -> Comparison:
    """Scores between `count` rows and five queries, by both."""
    model = _lora_model()
    ids, labels = _rows(count + QUERIES)
    (batch,) = batches(ids, labels, count + QUERIES)
    with torch.no_grad():
        drawn = drawn_labels(logits_of(model, batch), batch, seed=1)
    layers = trained_layers(model)
    started = time.monotonic()
    ours = _ours(model, batch, drawn, count)
    middle = time.monotonic()
    theirs = _theirs(model, list(layers), batch, drawn, count, folder)
    ended = time.monotonic()
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    return Comparison(error, (ended - middle) / (middle - started), len(layers))


def _lora_model() -> nn.Module:
    """A small Llama with a LoRA of all linear layers whose matrices are all random."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def _rows(count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of 6 to 20 tokens, the first four of them a question."""
    generator = torch.Generator().manual_seed(4)
    ids, labels = [], []
    for _ in range(count):
        length = int(torch.randint(6, 21, (1,), generator=generator))
        row = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        ids.append(row)
        labels.append([-100] * 4 + row[4:])
    return ids, labels


def _part(batch: Batch, places: slice) -> Batch:
    return Batch(
        batch.rows[places],
        batch.ids[places],
        batch.mask[places],
        batch.labels[places],
        batch.supervised[places],
        batch.reach[places],
    )


def _ours(model: nn.Module, batch: Batch, drawn: Tensor, count: int) -> Tensor:
    """Scores, shape (queries, rows)."""
    layers, ones = trained_layers(model), torch.ones(count)
    rows, queries = _part(batch, slice(count)), _part(batch, slice(count, None))

    def passed(part: Batch, labels: Tensor):
        return flows(layers, lambda: summed_loss(logits_of(model, part), labels), part.shape)

    covariances = Covariances()
    covariances.add(passed(rows, drawn[:count]), rows.reach.float(), ones)
    moments = SecondMoments(covariances.bases())
    moments.add(passed(rows, drawn[:count]), ones)
    curvature = moments.curvature(DAMPING, scale=1 / count)
    asked = passed(queries, queries.labels)
    turned = []
    for query in range(QUERIES):
        gradient = {name: flow.per_sequence()[query] for name, flow in asked.items()}
        turned.append(curvature.apply(gradient))
    return along(passed(rows, rows.labels), stacked(turned)).T


class _LanguageTask(Task):
    """The same losses, labels and mask, as kronfluence asks for them."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def compute_train_loss(
        self, batch: Mapping[str, Tensor], model: nn.Module, sample: bool = False
    ) -> Tensor:
        logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits.float()
        return summed_loss(logits, batch["drawn" if sample else "labels"])

    def compute_measurement(self, batch: Mapping[str, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.names

    def get_attention_mask(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["reach"]


def _theirs(
    model: nn.Module, names: list[str], batch: Batch, drawn: Tensor, count: int, folder: Path
) -> Tensor:
    """Scores, shape (queries, rows)."""
    lines = []
    for place in range(len(batch.rows)):
        lines.append(
            {
                "ids": batch.ids[place],
                "mask": batch.mask[place],
                "labels": batch.labels[place],
                "drawn": drawn[place],
                "reach": batch.reach[place].long(),
            }
        )
    task = _LanguageTask(names)
    analyzer = Analyzer(
        "check",
        prepare_model(model, task),
        task,
        cpu=True,
        output_dir=str(folder),
        disable_tqdm=True,
    )
    analyzer.fit_all_factors(
        "ekfac",
        dataset=lines[:count],
        per_device_batch_size=count,
        factor_args=FactorArguments(strategy="ekfac"),
    )
    analyzer.compute_pairwise_scores(
        "scores",
        factors_name="ekfac",
        query_dataset=lines[count:],
        train_dataset=lines[:count],
        per_device_query_batch_size=QUERIES,
        per_device_train_batch_size=count,
        score_args=ScoreArguments(damping_factor=None),
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"]
