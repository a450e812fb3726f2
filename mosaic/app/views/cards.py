"""The two cards that travel with an export, in the form of the Hugging Face hub: YAML between dashes, then Markdown."""

from __future__ import annotations

from typing import Any

import yaml

from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Round
from training.data.provenance import UNKNOWN, Origin

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def front_matter(data: dict[str, Any]) -> list[str]:
    """The metadata header of a card."""
    return ["---", yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]


def cell(text: str) -> str:
    """A text inside a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def model_card(
    run: str, base: str, round_: Round, report: dict[str, Any], origins: list[Origin]
) -> str:
    """Base, mixture, scores (on audit for the chosen round, else on selection) and the commands that made the adapter.

    `report` is what `report --json` prints.
    """
    audited = report["audit"] if report["audit"] and report["chosen"] == round_.round else None
    role = "audit" if audited else "selection"
    scores = {
        objective: audited["chosen"][objective] if audited else roles["selection"].json_data()
        for objective, roles in round_.scores.items()
    }
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": "mosaic-suite", "name": f"{objective}, {role}"},
            "metrics": [
                {"type": "mosaic-score", "value": round(score["mean"], 4), "name": "mean, 1 to 5"}
            ],
        }
        for objective, score in scores.items()
        if score["mean"] is not None
    ]
    licences = sorted({o.licence for o in origins})
    header: dict[str, Any] = {
        "library_name": "peft",
        "base_model": base,
        "tags": ["lora", "mosaic"],
    }
    header["model-index"] = [{"name": f"{run}-round-{round_.round}", "results": results}]
    tokens = round_.trial.adapter.tokens if round_.trial.adapter else 0
    lines = [
        *front_matter(header),
        f"# {run}, round {round_.round}", "",
        f"A LoRA adapter of `{base}`, trained on {tokens:,} tokens that MOSAIC curated.", "",
        "## Scores", "",
        f"| objective | {role} mean | 95 % interval | prompts |" + (" base |" if audited else ""),
        "| --- | --- | --- | --- |" + (" --- |" if audited else ""),
    ]  # fmt: skip
    for objective, score in scores.items():
        before = audited["base"].get(objective, {}).get("mean") if audited else None
        tail = (f" {before:.2f} |" if before is not None else " |") if audited else ""
        lines.append(
            f"| {objective} | {score['mean']:.2f} | {score['low']:.2f} to {score['high']:.2f} | {score['n_scored']} |"
            + tail
            if score["mean"] is not None
            else f"| {objective} | not scored | | 0 |{tail}"
        )
    lines += [
        "",
        f"Scores are means from 1 to 5, higher is better. {_trust(role)}",
        "",
        "## Mixture",
        "",
    ]
    lines += _mixture(round_.plan)
    if licences:
        lines += ["", f"Licences of the training data: {', '.join(licences)} (see DATASET.md). An adapter does not inherit a"
                      " licence by itself: decide under which you publish it."]  # fmt: skip
    lines += [
        "", "## How it was made", "",
        f"    python -m mosaic run {run}/config.json        # config digest {report['config_digest'][:16]}",
        f"    python -m mosaic export {run} --round {round_.round} --out OUT",
        "", f"Planner: {round_.planner}. Adapter digest `{round_.adapter}`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _trust(role: str) -> str:
    if role == "audit":
        return "No decision saw the audit prompts."
    return "Rounds were chosen by these prompts, so the means are optimistic."


def _mixture(plan: ActionPlan | None) -> list[str]:
    lines = ["| data set | share of tokens | buckets | focus |", "| --- | --- | --- | --- |"]
    for dataset, share in (plan.ratios if plan else {}).items():
        assert plan is not None  # mypy cannot see that the loop is empty without one
        weights = ", ".join(f"{b} {w:.2f}" for b, w in plan.bucket_weights.get(dataset, {}).items())
        focus = plan.focus.get(dataset)
        wanted = ", ".join(sorted(focus.include)) if focus else ""
        lines.append(f"| {cell(dataset)} | {share:.3f} | {cell(weights)} | {cell(wanted)} |")
    return lines


def dataset_card(run: str, round_: Round, origins: list[Origin] | None) -> str:
    """What the training set holds and why, asked against delivered; its sources and licences.

    `origins` is None where the pool is not at hand any more.
    """
    curated = round_.curation.datasets if round_.curation else {}
    used = [name for name, entry in curated.items() if entry.rows]
    known = [o for o in origins or [] if o.dataset in used]
    licences = sorted(
        {o.licence for o in known}
        | ({UNKNOWN} if set(used) - {o.dataset for o in known} else set())
    )
    rows = round_.curation.total.rows if round_.curation else 0
    header: dict[str, Any] = {
        "pretty_name": f"{run}, round {round_.round}",
        "license": licences[0] if len(licences) == 1 else licences,
        "task_categories": ["text-generation"],
        "tags": ["mosaic", "chat"],
        "size_categories": [next((word for most, word in SIZES if rows < most), "n>1M")],
    }
    lines = [*front_matter(header), f"# Training set of {run}, round {round_.round}", ""]
    lines += [
        "| data set | bucket | tokens asked | tokens delivered | rows |",
        "| --- | --- | --- | --- | --- |",
    ]
    for dataset, entry in curated.items():
        for bucket, b in entry.buckets.items():
            lines.append(
                f"| {cell(dataset)} | {cell(bucket)} | {b.requested:,} | {b.selected:,} | {b.rows} |"
            )
    lines += ["", "## Sources and licences", ""]
    if origins is None:
        lines.append(
            "The pool of the run is not at hand, so its sources and licences are not known here."
        )
    else:
        lines += [
            "| data set | source | licence | rows in the pool's import | left out |",
            "| --- | --- | --- | --- | --- |",
        ]
        for o in known:
            left = ", ".join(f"{count:,} {reason}" for reason, count in o.left_out.items())
            lines.append(
                f"| {cell(o.dataset)} | {cell(o.source)} | {cell(o.licence)} | {o.rows:,} | {cell(left)} |"
            )
        for dataset in sorted(set(used) - {o.dataset for o in known}):
            lines.append(f"| {cell(dataset)} | {UNKNOWN} | {UNKNOWN} | | |")
        made = sorted({o.command for o in known if o.command})
        if made:
            lines += ["", "Imported by:", "", *(f"    {command}" for command in made)]
    rationale = round_.plan.rationale if round_.plan else ""
    lines += [
        "",
        "## Rationale of the plan",
        "",
        *(f"> {line}" for line in rationale.splitlines()),
        "",
    ]
    return "\n".join(lines)
