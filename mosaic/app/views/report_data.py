"""Journal -> what people and scripts read: report, status, profile, trace, links. Reads, never runs."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

from agent.state import RunState, fold
from mosaic.app.decisions import open_request
from mosaic.app.runs import run_config
from mosaic.app.terminal import safe
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import FOLDER, Store
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Score
from mosaic.core.types.runs import Round

TOKENS = ("budget", "selected", "trained", "supervised", "short")
PARTS = ("plan", "curate", "train", "generate", "judge")


def load(folder: Path) -> tuple[Journal, RunState]:
    """The journal (caller closes it) and its fold."""
    config = run_config(folder)
    journal = Journal.open(folder)
    return journal, fold(journal, list(config.objectives))


def report_data(folder: Path) -> dict[str, Any]:
    """The stable shape of `report --json`; see docs/run-directory.md."""
    config = run_config(folder)
    journal, state = load(folder)
    try:
        cap, held, spent = journal.ledger()
        seconds = _seconds(journal)
        calls = model_calls(journal)
        events = journal.events()
    finally:
        journal.close()
    audit = state.audit
    replaced = {e.round: e.payload for e in events if e.kind == "replaced"}
    return {
        "run": folder.name,
        "config_digest": digest_of(config.json_data()),
        "planner": config.planner.kind,
        "objectives": list(config.objectives),
        "targets": {name: o.target for name, o in config.objectives.items()},
        "floors": {name: o.floor for name, o in config.objectives.items()},
        "state": "finished" if audit else "unfinished",
        "stop": audit.stop if audit else None,
        "rounds": [
            _round(r, seconds.get(r.round, {}), replaced.get(r.round)) for r in state.rounds
        ],
        "calibration": None
        if state.calibration is None
        else {
            "mixture": state.calibration.mixture.json_data(),
            "scores": [
                {o: {role: _score(s) for role, s in roles.items()} for o, roles in repeat.items()}
                for repeat in state.calibration.scores
            ],
            "noise": state.calibration.noise,
        },
        "archive": state.archive,
        "chosen": audit.chosen if audit else None,
        "audit": None
        if audit is None
        else {
            "base": {o: _score(s) for o, s in audit.base.items()},
            "chosen": {o: _score(s) for o, s in audit.scores.items()},
        },
        "hypervolume": state.hypervolumes,
        "budget": {"total": cap, "spent": spent, "reserved": held, "left": cap - spent - held},
        "model_calls": calls,
    }


def _score(score: Score) -> dict[str, Any]:
    return score.model_dump(include={"mean", "low", "high", "n_scored", "n_unscored", "n_invalid"})


def _round(
    round_: Round, seconds: dict[str, float], replaced: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "round": round_.round,
        "plan": round_.plan.json_data() if round_.plan else None,
        "planner": round_.planner,
        "replaced": replaced,
        "scores": {
            o: {role: _score(s) for role, s in roles.items()} for o, roles in round_.scores.items()
        },
        "tokens": round_.tokens or dict.fromkeys(TOKENS, 0),
        "curation": round_.curation.json_data() if round_.curation else None,
        "seconds": seconds,
        "accepted": round_.accepted,
        "reason": round_.reason,
        "dominated": round_.dominated,
        "forecast": [f.json_data() for f in round_.forecast],
        "adapter": round_.adapter,
    }


def _seconds(journal: Journal) -> dict[int, dict[str, float]]:
    """Wall seconds of each round by part. Round 0 includes the base's evaluation only; calibration is not a round."""
    out: dict[int, dict[str, float]] = {}
    recorded: set[int] = set()
    for step in journal.steps():
        if step.state != "done" or step.round in recorded:
            continue
        parts = out.setdefault(step.round, dict.fromkeys(PARTS, 0.0))
        seconds = step.seconds or 0.0
        if step.kind in parts:
            parts[step.kind] += seconds
        elif step.kind == "likelihood":
            parts["generate"] += seconds
        elif step.kind == "record":
            recorded.add(step.round)
            # The round's own clock starts again when it is resumed; its parts keep what they took before.
            parts["total"] = max(seconds, sum(parts[p] for p in PARTS))
            parts["other"] = max(0.0, parts["total"] - sum(parts[p] for p in PARTS))
    return {
        n: {k: round(v, 4) for k, v in parts.items()} for n, parts in out.items() if n in recorded
    }


def model_calls(journal: Journal) -> dict[str, dict[str, int]]:
    """What planner and judges asked of language models: answers, requests with retries, charged tokens. Known answers
    that the judge was asked about, and what an outage left without an answer, count as requests and tokens. A verdict
    that another run paid for (a hit in `judge.cache`) is counted apart."""
    planner = [s.result or {} for s in journal.steps("plan_call") if s.state == "done"]
    verdicts = [s.result or {} for s in journal.steps("verdict") if s.state == "done"]
    asked = [v["verdict"] for v in verdicts if v["source"] == "model"]
    charges = journal.steps("charge")
    beside = {
        who: [s.result or {} for s in charges if s.inputs["who"] == who]
        for who in ("planner", "judge")
    }
    gold_checks = [s.result or {} for s in journal.steps("gold_checks") if s.state == "done"]
    beside["judge"] += [
        c for c in gold_checks if "attempts" in c
    ]  # runs of earlier releases did not count them
    return {
        who: {
            "answers": len(answers),
            "requests": sum(int(a["attempts"]) for a in (*answers, *beside[who])),
            "tokens": sum(int(a["charged"]) for a in (*answers, *beside[who])),
            **more,
        }
        for who, answers, more in (
            ("planner", planner, {}),
            ("judge", asked, {"from_cache": len(verdicts) - len(asked)}),
        )
        if answers or beside[who] or any(more.values())
    }


def report_text(data: dict[str, Any]) -> str:
    """The result table of a run as plain text."""
    objectives = data["objectives"]
    width = max(len(o) for o in objectives)
    lines = [f"{data['run']}: {data['state']}" + (f" ({data['stop']})" if data["stop"] else ""), ""]
    lines.append("selection suites (mean, 95 % interval)")
    lines.append(
        "round  " + "  ".join(f"{o:>{max(width, 17)}}" for o in objectives) + "  hypervolume"
    )
    for round_, volume in zip(data["rounds"], data["hypervolume"], strict=True):
        cells = "  ".join(
            f"{_cell(round_['scores'][o]['selection']):>{max(width, 17)}}" for o in objectives
        )
        mark = "*" if round_["round"] == data["chosen"] else " " if round_["accepted"] else "x"
        name = "base" if round_["round"] == 0 else str(round_["round"])
        lines.append(f"{name:>4} {mark} {cells}  {volume:.3f}")
    if data["audit"]:
        lines += ["", "audit suites, opened once"]
        for label, row in (
            ("base", data["audit"]["base"]),
            (f"round {data['chosen']}", data["audit"]["chosen"]),
        ):
            if row:
                cells = "  ".join(f"{_cell(row[o]):>{max(width, 17)}}" for o in objectives)
                lines.append(f"{label:>6} {cells}")
    budget = data["budget"]
    lines += ["", f"tokens: {budget['spent']:,} spent of {budget['total']:,}"]
    lines += [
        f"{who}: {used['answers']:,} answers, {used['requests']:,} requests, {used['tokens']:,} model tokens"
        + (f", {used['from_cache']:,} from judge.cache" if used.get("from_cache") else "")
        for who, used in data["model_calls"].items()
    ]
    for round_ in data["rounds"]:
        if round_["replaced"]:
            lines.append(
                f"round {round_['round']}: planner replaced: {round_['replaced']['reason']}"
            )
        if not round_["accepted"]:
            lines.append(f"round {round_['round']} not accepted: {round_['reason']}")
    return "\n".join(map(safe, lines))


def _cell(score: dict[str, Any]) -> str:
    if score["mean"] is None:
        return "not scored"
    return f"{score['mean']:.2f} ({score['low']:.2f}-{score['high']:.2f})"


def status_data(folder: Path) -> dict[str, Any]:
    """State, rounds done, open step, budget."""
    config = run_config(folder)
    journal, state = load(folder)
    try:
        cap, held, spent = journal.ledger()
        steps = journal.steps()
        waits = open_request(journal)
    finally:
        journal.close()
    pending = [s for s in steps if s.state != "done"]
    return {
        "run": folder.name,
        "state": "finished" if state.audit else "waiting for approval" if waits else "unfinished",
        "rounds": f"{len([r for r in state.rounds if r.plan])} of {config.rounds}",
        "calibrated": state.calibration is not None,
        "archive": state.archive,
        "last": steps[-1].kind if steps else None,
        "begun": pending[-1].kind if pending else None,
        "tokens_spent": spent,
        "tokens_left": cap - held - spent,
    }


def request_text(request: dict[str, Any]) -> str:
    """The question for a terminal: drawn from the plan; the planner's words in a box of their own at the end."""
    cost = request["cost"]
    lines = [
        f"{request['run']}, round {request['round']}: a plan of {request['planner']} waits (digest {request['plan_digest'][:12]})",
        f"cost {cost['tokens']:,} training tokens; {cost['left_before']:,} left before, {cost['left_after']:,} after",
        "",
        "change against the plan executed last",
    ]
    for change in request["changes"]:
        before, after = change["before"], change["after"]
        if isinstance(before, float | int) and isinstance(after, float | int):
            mark = " " if abs(after - before) < 0.005 else "+" if after > before else "-"
            lines.append(
                f"  {mark} {change['path']:<42} {100 * before:6.1f} % -> {100 * after:6.1f} %"
            )
        else:
            lines.append(f"  ~ {change['path']}: {before} -> {after}")
    lines += ["", "stock"]
    for entry in request["stock"]:
        lines.append(
            f"    {entry['dataset']} {entry['bucket']:<20} asked {entry['asked']:>9,} of {entry['stock']:>11,}"
        )
    lines.append("")
    for floor in request["floors"]:
        lines.append(
            f"floor of {floor['objective']}: {floor['floor']}"
            + (" (below it now)" if floor["below"] else "")
        )
    lines.append(
        "violations: " + ("none" if not request["violations"] else str(request["violations"]))
    )
    lines.append("expected: " + ", ".join(f"{o} {c:+.2f}" for o, c in request["expected"].items()))
    lines += ["", "+-- the planner's words (not checked) " + "-" * 40]
    lines += [f"| {line}" for line in _wrapped(request["words"])]
    lines.append("+" + "-" * 76)
    return "\n".join(safe(line) for line in lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 74) or ["(none)"]


def pick_round(state: RunState, number: int | None) -> Round:
    """A recorded round, the last unless one is named. UsageError with the rounds there are."""
    if not state.rounds:
        raise UsageError("no round is recorded yet")
    if number is None:
        return state.rounds[-1]
    found = next((r for r in state.rounds if r.round == number), None)
    if found is None:
        raise UsageError(f"--round {number}: recorded are 0 to {state.rounds[-1].round}")
    return found


def profile_data(folder: Path, number: int | None) -> dict[str, Any]:
    """The failure profile of a round as plain data, worst slices first."""
    journal, state = load(folder)
    journal.close()
    return pick_round(state, number).profile.json_data()


def link_rounds(folder: Path) -> None:
    """Relative links under rounds/ for people; code reads the journal, never these."""
    journal, state = load(folder)
    journal.close()
    store = Store(folder)
    for round_ in state.rounds:
        target = folder / "rounds" / f"{round_.round:02d}"
        target.mkdir(parents=True, exist_ok=True)
        if round_.plan:
            (target / "plan.json").write_text(json.dumps(round_.plan.json_data(), indent=2) + "\n")
        if round_.adapter:
            _link(target / "adapter", store.root / round_.adapter)
        for objective, roles in state.files[round_.round].items():
            for role, files in roles.items():
                _link(target / f"{objective}.{role}.scored.json", folder / FOLDER / files["scored"])


def _link(link: Path, target: Path) -> None:
    """A link to what is there; one to an artifact that was not kept is removed."""
    if not target.exists():
        link.unlink(missing_ok=True)
    elif not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent))
