"""Copy a round out of a run: adapter, training set, plan, and the two cards that explain them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mosaic.app.runs import run_config
from mosaic.app.views import load, pick_round, report_data
from mosaic.errors import UsageError
from mosaic.store import MANIFEST, Store
from mosaic.types import Round


def export_round(folder: Path, number: int | None, out: Path) -> list[Path]:
    """Write the folder `out`: adapter/, training_set.parquet, plan.json, README.md (model card), DATASET.md."""
    if out.exists():
        raise UsageError(f"--out {out} exists; name a new folder")
    journal, state = load(folder)
    try:
        wanted = number if number is not None else state.audit.chosen if state.audit else None
        round_ = pick_round(state, wanted)
        if round_.adapter is None or round_.plan is None:
            raise UsageError(f"round {round_.round} is the base and has no adapter; name one with --round")
        step = next(
            s for s in journal.steps("train") if s.state == "done" and (s.result or {})["digest"] == round_.adapter
        )
    finally:
        journal.close()
    store = Store(folder)
    if not (store.root / round_.adapter).exists():
        raise UsageError(
            f"the adapter of round {round_.round} was not kept (keep: archive); archived rounds: {state.archive}"
        )
    report = report_data(folder)
    out.mkdir(parents=True)
    shutil.copytree(store.path(round_.adapter), out / "adapter", ignore=shutil.ignore_patterns(MANIFEST))
    shutil.copyfile(store.path(step.inputs["training_set"]), out / "training_set.parquet")
    (out / "plan.json").write_text(json.dumps(round_.plan.json_data(), indent=2) + "\n")
    (out / "README.md").write_text(model_card(folder, round_, report))
    (out / "DATASET.md").write_text(dataset_card(folder, round_))
    return sorted(p for p in out.iterdir())


def model_card(folder: Path, round_: Round, report: dict[str, Any]) -> str:
    """Base, mixture, scores and the command that made the adapter, with the metadata header of a model card."""
    base = Path(run_config(folder).base_model).name
    audited = report["audit"] if report["chosen"] == round_.round else None
    role = "audit" if audited else "selection"
    lines = [
        "---", "library_name: peft", f"base_model: {base}", "tags: [lora, mosaic]", "---", "",
        f"# {folder.name}, round {round_.round}", "",
        f"A LoRA adapter trained on {round_.tokens['trained']:,} tokens that MOSAIC curated.", "",
        f"| objective | {role} mean | 95 % interval | prompts |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for objective, roles in round_.scores.items():
        score = audited["chosen"][objective] if audited else roles["selection"].json_data()
        lines.append(
            f"| {objective} | {score['mean']:.2f} | {score['low']:.2f} to {score['high']:.2f} | {score['n_scored']} |"
            if score["mean"] is not None
            else f"| {objective} | not scored | | 0 |"
        )
    lines += ["", "| data set | share of tokens |", "| --- | --- |"]
    lines += [f"| {d} | {w:.3f} |" for d, w in (round_.plan.ratios if round_.plan else {}).items()]
    command = f"python -m mosaic export {folder.name} --round {round_.round}"
    lines += ["", f"Adapter digest `{round_.adapter}`. Exported by `{command}`.", ""]
    return "\n".join(lines)


def dataset_card(folder: Path, round_: Round) -> str:
    """What the training set holds and why, asked against delivered."""
    lines = [
        "---",
        "task_categories: [text-generation]",
        "---",
        "",
        f"# Training set of {folder.name}, round {round_.round}",
        "",
    ]
    lines += ["| data set | bucket | tokens asked | tokens delivered | rows |", "| --- | --- | --- | --- | --- |"]
    for dataset, entry in (round_.curation.datasets if round_.curation else {}).items():
        for bucket, b in entry.buckets.items():
            lines.append(f"| {dataset} | {bucket} | {b.requested:,} | {b.selected:,} | {b.rows} |")
    rationale = round_.plan.rationale if round_.plan else ""
    lines += ["", "Rationale of the plan:", "", *(f"> {line}" for line in rationale.splitlines()), ""]
    return "\n".join(lines)
