"""Copy a round out of a run: adapter, training set, plan, and the two cards that explain them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from agent.retention import dropped
from mosaic.app.config import RunConfig
from mosaic.app.export_model import base_name, export_adapter, merge, same_base
from mosaic.app.runs import run_config
from mosaic.app.views.cards import dataset_card, model_card, pairs_card
from mosaic.app.views.report_data import load, pick_round, report_data
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.records import Train
from mosaic.core.types.runs import TRAINING_SET, Round
from training.data.pool import Pool
from training.data.provenance import Origin


def export_round(folder: Path, number: int | None, out: Path, merged: bool = False) -> list[Path]:
    """Write the folder `out` and return what is in it.

    adapter/ (with tokenizer and recipe), training_set.parquet, plan.json, README.md (the model
    card) and DATASET.md; dpo_pairs/, a data set in TRL's conversational preference format with its
    card, if pairs were trained on; with `merged` also model/, base and adapter in one. Without a `number` it
    is the chosen round. Raises UsageError if there is nothing to export, or the base is not at
    hand.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists; name a new folder")
    journal, state = load(folder)
    try:
        if number is None and state.audit and state.audit.chosen is None:
            raise UsageError(
                "no round was chosen, since none met the floors; name one with --round"
            )
        wanted = number if number is not None else state.audit.chosen if state.audit else None
        round_ = pick_round(state, wanted)
        if round_.adapter is None or round_.plan is None:
            raise UsageError(
                f"round {round_.round} is the base and has no adapter; name one with --round"
            )
        training_set = _training_set(journal, round_)
        inputs = journal.recorded.inputs
        deleted = dropped(journal)
    finally:
        journal.close()
    store = Store(folder)
    if round_.adapter in deleted:
        raise UsageError(
            f"the adapter of round {round_.round} was not kept (keep: archive); archived rounds: "
            f"{state.archive}"
        )
    adapter = store.path(round_.adapter)
    report = report_data(folder)
    config = run_config(folder)
    same_base(config, inputs.base_model)
    out.mkdir(parents=True)
    export_adapter(adapter, config, inputs.base_model, out / "adapter")
    if merged:
        merge(adapter, config, inputs.base_model, out / "model")
    if training_set is not None:
        shutil.copyfile(store.path(training_set), out / "training_set.parquet")
    for stage in round_.trial.stages:
        if stage.pairs_file is not None:
            pairs = out / f"{stage.method}_pairs"
            pairs.mkdir()
            shutil.copyfile(store.path(stage.pairs_file), pairs / "train.parquet")
            (pairs / "README.md").write_text(pairs_card(folder.name, round_, stage))
        if stage.reward_model is not None:
            shutil.copytree(store.path(stage.reward_model), out / "reward_model")
    (out / "plan.json").write_text(json.dumps(round_.plan.json_data(), indent=2) + "\n")
    origins = pool_origins(config, inputs.pool)
    base, _ = base_name(config)
    base = Path(base).name if Path(base).is_absolute() else base
    (out / "README.md").write_text(model_card(folder.name, base, round_, report, origins or []))
    (out / "DATASET.md").write_text(dataset_card(folder.name, round_, origins))
    return sorted(out.iterdir())


def _training_set(journal: Journal, round_: Round) -> str | None:
    """Digest of the rows of a round's mixture; None if its plan spent nothing on one."""
    trained = {step.result.digest: step.inputs.job for step in journal.steps(Train)}
    stages = [stage.adapter.digest for stage in round_.trial.stages if stage.adapter]
    first = stages[0] if stages else round_.adapter
    return trained[first].inputs.get(TRAINING_SET) if first else None


def pool_origins(config: RunConfig, digest: str) -> list[Origin] | None:
    """Sources and licences of the run's pool.

    None if the folder is gone or holds another pool by now.
    """
    try:
        pool = Pool.open(Path(config.pool))
    except UsageError:
        return None
    return pool.origins if pool.digest == digest else None
