"""The two cards that travel with an export, in the form of the Hugging Face hub.

YAML between dashes, then Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from mosaic.app.shapes import AuditShape, IndependentShape, Report
from mosaic.app.views.levels import control_table
from mosaic.core.types.evaluation import Difference, Score
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Round, Stage
from prompts.levels import wish
from training.data.provenance import UNKNOWN, Origin

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# What can be the name of a repository on the hub.
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
NO_POOL = "The pool of the run is not at hand, so its sources and licences are not known here."


def front_matter(data: Mapping[str, object]) -> list[str]:
    """The metadata header of a card."""
    written = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    return ["---", written.rstrip(), "---", ""]


def cell(text: str) -> str:
    """A text inside a Markdown table.

    >>> cell("a|b")
    'a\\\\|b'
    """
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(header: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [_row(*header), _row(*["---"] * len(header))]


# -- the model card --------------------------------------------------------------------------------


def model_card(run: str, base: str, round_: Round, report: Report, origins: list[Origin]) -> str:
    """Base, mixture, scores and the commands that made the adapter.

    Scores are those on audit for the chosen round, else those on selection.
    """
    audited = report.audit is not None and report.chosen == round_.round
    role = "audit" if audited else "selection"
    scores = {objective: roles["selection"] for objective, roles in round_.scores.items()}
    before: dict[str, Score] | None = None
    if report.audit and audited:
        scores = {objective: report.audit.chosen[objective] for objective in scores}
        before = report.audit.base
    results = [
        _result(o, role, score.mean) for o, score in scores.items() if score.mean is not None
    ]
    header: dict[str, object] = {"library_name": "peft", "tags": ["lora", "mosaic"]}
    # The hub refuses a card that names a base under which no repository could be, or no result.
    if REPOSITORY.fullmatch(base):
        header["base_model"] = base
    if results:
        header["model-index"] = [{"name": f"{run}-round-{round_.round}", "results": results}]
    tokens = round_.trial.usage.trained
    lines = [
        *front_matter(header),
        f"# {run}, round {round_.round}",
        "",
        f"A LoRA adapter of `{base}`, trained on {tokens:,} tokens that MOSAIC curated.",
        "",
        "## Scores",
        "",
        *_score_table(role, scores, before),
        "",
        f"Scores are means from 1 to 5, higher is better. {_trust(role)}",
        *(_against_lines(report.audit) if report.audit and audited else []),
        *(_independent_lines(report.audit.independent) if report.audit and audited else []),
        *_fallen_lines(round_, report),
        "",
        "## Mixture",
        "",
        *_mixture_table(round_.plan),
        *_stage_lines(round_.trial.stages),
        *_level_lines(round_, report),
        *_licence_lines(origins),
        "",
        "## How it was made",
        "",
        f"    python -m mosaic run {run}/config.json        "
        f"# config digest {report.config_digest[:16]}",
        f"    python -m mosaic export {run} --round {round_.round} --out OUT",
        "",
        f"Planner: {round_.planner}. Adapter digest `{round_.adapter}`.",
        "",
    ]
    return "\n".join(lines)


def _against_lines(audit: AuditShape) -> list[str]:
    """Whether the chosen round beats the pools' own proportions and the base, by interval."""
    header = ["objective", "less the pools' own proportions", "less the base"]
    lines = ["", "## Against the pools' own proportions, and against the base", ""]
    lines += _table(header)
    for objective in audit.chosen:
        gain, change = audit.gain.get(objective), audit.against_base.get(objective)
        lines.append(_row(objective, against(gain), against(change)))
    lines += [
        "",
        "Differences over the same audit prompts with 95 % intervals; the pools' own proportions were "
        "trained with the same recipe and budget.",
    ]
    return lines


def _independent_lines(suites: Mapping[str, IndependentShape]) -> list[str]:
    """The independent suites, apart from those that decisions read."""
    if not suites:
        return []
    header = ["suite", "judged as", "mean", "95 % interval", "prompts", "base", "less the base"]
    lines = ["", "## Independent suites", "", *_table(header)]
    for name, test in suites.items():
        score, before = test.chosen, test.base.mean
        shown = ["not scored", "", "0"]
        if score is not None and score.mean is not None:
            interval = f"{score.low:.2f} to {score.high:.2f}"
            shown = [f"{score.mean:.2f}", interval, str(score.n_scored)]
        base = "" if before is None else f"{before:.2f}"
        change = against(test.against_base.change if test.against_base else None)
        lines.append(_row(cell(name), cell(test.objective), *shown, base, change))
    return [*lines, "", "They were opened at the end alone, and no decision read them."]


def against(change: Difference | None) -> str:
    """A difference in words, by its interval.

    >>> against(Difference(mean=0.5, low=0.2, high=0.8))
    'better: +0.50 (+0.20 to +0.80)'
    >>> against(Difference(mean=0.1, low=-0.2, high=0.4))
    'not shown to differ: +0.10 (-0.20 to +0.40)'
    """
    if change is None:
        return "not measured"
    word = "not shown to differ"
    if change.low > 0:
        word = "better"
    elif change.high < 0:
        word = "worse"
    return f"{word}: {change.mean:+z.2f} ({change.low:+z.2f} to {change.high:+z.2f})"


def _fallen_lines(round_: Round, report: Report) -> list[str]:
    """In which objectives the round fell below the base, if it is the audited one."""
    if report.audit is None or round_.round != report.chosen or not report.audit.fell:
        return []
    return ["", f"Fell below the base: {', '.join(report.audit.fell)}."]


def _result(objective: str, role: str, mean: float) -> dict[str, object]:
    """One score as the hub's `model-index` reads it."""
    metric = {"type": "mosaic-score", "value": round(mean, 4), "name": "mean, 1 to 5"}
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": "mosaic-suite", "name": f"{objective}, {role}"},
        "metrics": [metric],
    }


def _score_table(
    role: str, scores: Mapping[str, Score], before: Mapping[str, Score] | None
) -> list[str]:
    """A row per objective; `before` are the base's scores, if they were measured too."""
    header = ["objective", f"{role} mean", "95 % interval", "prompts"]
    lines = _table([*header, "base"] if before is not None else header)
    for objective, score in scores.items():
        cells = [objective, "not scored", "", "0"]
        if score.mean is not None:
            interval = f"{score.low:.2f} to {score.high:.2f}"
            cells = [objective, f"{score.mean:.2f}", interval, str(score.n_scored)]
        if before is not None:
            base = before[objective].mean if objective in before else None
            cells.append("" if base is None else f"{base:.2f}")
        lines.append(_row(*cells))
    return lines


def _trust(role: str) -> str:
    if role == "audit":
        return "No decision saw the audit prompts."
    return "Rounds were chosen by these prompts, so the means are optimistic."


def _mixture_table(plan: ActionPlan | None) -> list[str]:
    lines = _table(["data set", "share of tokens", "buckets", "focus"])
    if plan is None:
        return lines
    for dataset, share in plan.ratios.items():
        weights = plan.bucket_weights.get(dataset, {})
        buckets = ", ".join(f"{bucket} {weight:.2f}" for bucket, weight in weights.items())
        focus = plan.focus.get(dataset)
        wanted = ", ".join(sorted(focus.include)) if focus else ""
        lines.append(_row(cell(dataset), f"{share:.3f}", cell(buckets), cell(wanted)))
    return lines


def _stage_lines(stages: list[Stage]) -> list[str]:
    """What each method was spent, if there are several."""
    if not stages:
        return []
    lines = ["", "## Methods", ""]
    lines += _table(["method", "tokens trained", "tokens sampled", "pairs", "practice prompts"])
    for stage in stages:
        pairs = (str(stage.pairs.pairs), str(stage.pairs.prompts)) if stage.pairs else ("", "")
        usage = stage.usage
        lines.append(_row(stage.method, f"{usage.trained:,}", f"{usage.sampled:,}", *pairs))
    return lines


def _level_lines(round_: Round, report: Report) -> list[str]:
    """How prompts state levels, and what the adapter gives for each, if it was trained for them."""
    if not round_.trial.wish:
        return []
    lines = ["", "## Levels", ""]
    lines += [
        "The adapter was trained for levels that a prompt asks for, in the first line of its system "
        "message. It was measured with",
        "",
        f"    {wish(round_.trial.wish)}",
    ]
    control = report.audit.control if report.audit and report.chosen == round_.round else {}
    if control:
        header, rows = control_table(control)
        lines += ["", "Requested level against measured mean, on audit, the others as above:", ""]
        lines += [*_table(header), *(_row(*map(cell, row)) for row in rows)]
    return lines


def _licence_lines(origins: list[Origin]) -> list[str]:
    licences = sorted({origin.licence for origin in origins})
    if not licences:
        return []
    return [
        "",
        f"Licences of the training data: {', '.join(licences)} (see DATASET.md). An adapter does "
        "not inherit a licence by itself: decide under which you publish it.",
    ]


# -- the data set card -----------------------------------------------------------------------------


def dataset_card(run: str, round_: Round, origins: list[Origin] | None) -> str:
    """What the training set holds and why, asked against delivered; its sources and licences.

    `origins` is None if the pool is not at hand any more.
    """
    curated = round_.curation.datasets if round_.curation else {}
    used = [name for name, entry in curated.items() if entry.rows]
    known = [origin for origin in origins or [] if origin.dataset in used]
    unknown = sorted(set(used) - {origin.dataset for origin in known})
    licences = {origin.licence for origin in known}
    if unknown:
        licences.add(UNKNOWN)
    named = sorted(licences)
    rows = round_.curation.total.rows if round_.curation else 0
    header = {
        "pretty_name": f"{run}, round {round_.round}",
        "license": named[0] if len(named) == 1 else named,
        "task_categories": ["text-generation"],
        "tags": ["mosaic", "chat"],
        "size_categories": [_size(rows)],
    }
    lines = [*front_matter(header), f"# Training set of {run}, round {round_.round}", ""]
    lines += _table(["data set", "bucket", "tokens asked", "tokens delivered", "rows"])
    for dataset, entry in curated.items():
        for bucket, counts in entry.buckets.items():
            tokens = (f"{counts.requested:,}", f"{counts.selected:,}")
            lines.append(_row(cell(dataset), cell(bucket), *tokens, str(counts.rows)))
    lines += ["", "## Sources and licences", ""]
    lines += [NO_POOL] if origins is None else _source_lines(known, unknown)
    rationale = round_.plan.rationale if round_.plan else ""
    lines += ["", "## Rationale of the plan", ""]
    lines += [f"> {line}" for line in rationale.splitlines()]
    return "\n".join([*lines, ""])


def pairs_card(run: str, round_: Round, stage: Stage) -> str:
    """What the preference pairs of a stage hold, and what was left out of them."""
    report = stage.pairs
    if report is None:
        raise ValueError(f"{stage.method} formed no pairs")
    header = {
        "pretty_name": f"{run}, round {round_.round}, preference pairs",
        "tags": ["mosaic", "preference", "chat"],
        "size_categories": [_size(report.pairs)],
    }
    lines = [*front_matter(header), f"# Preference pairs of {run}, round {round_.round}", ""]
    lines.append(
        f"{report.pairs} pairs from {report.answers:,} answers that the model under training gave to "
        f"{report.prompts} practice prompts, in TRL's conversational preference format: `prompt`, "
        "`chosen` and `rejected` are lists of messages."
    )
    lines += ["", "## Left out", ""]
    lines.append(f"* {report.cut} answers that reached the greatest length")
    lines.append(f"* {report.unscored} answers that an objective could not score")
    for reason, count in report.unlearnable.items():
        lines.append(f"* {count} answers that cannot be trained on: {reason}")
    lines += ["", "## Where objectives agreed", ""]
    lines += _table(["objectives", "prompts of both", "with a pair that agrees"])
    for found in report.yields:
        names = " and ".join(found.objectives)
        lines.append(_row(cell(names), str(found.prompts), str(found.consistent)))
    lines += ["", "## Slices", "", *_table(["practice prompts", "pairs"])]
    for name, count in report.slices.items():
        lines.append(_row(cell(name), str(count)))
    return "\n".join([*lines, ""])


def _size(rows: int) -> str:
    """The hub's word for a number of rows.

    >>> _size(999), _size(1_000), _size(2_000_000)
    ('n<1K', '1K<n<10K', 'n>1M')
    """
    for most, word in SIZES:
        if rows < most:
            return word
    return "n>1M"


def _source_lines(known: Sequence[Origin], unknown: Sequence[str]) -> list[str]:
    lines = _table(["data set", "source", "licence", "rows in the pool's import", "left out"])
    for origin in known:
        left = ", ".join(f"{count:,} {reason}" for reason, count in origin.left_out.items())
        named = (cell(origin.dataset), cell(origin.source), cell(origin.licence))
        lines.append(_row(*named, f"{origin.rows:,}", cell(left)))
    for dataset in unknown:
        lines.append(f"| {cell(dataset)} | {UNKNOWN} | {UNKNOWN} | | |")
    commands = sorted({origin.command for origin in known if origin.command})
    if commands:
        lines += ["", "Imported by:", ""]
        lines += [f"    {command}" for command in commands]
    return lines
