"""Why a run did what it did: the trace as a tree, two rounds side by side, the reason of a row, other planners' plans."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.state import RunState
from agent.weights import plan_distance, plan_shares
from mosaic.app.terminal import safe
from mosaic.app.views.report_data import load, pick_round
from mosaic.core.errors import MosaicError, UsageError
from mosaic.core.journal import Event, Journal, Step
from mosaic.core.store import Store
from mosaic.core.types.runs import Observation, Round

POLL = 0.5


def trace_data(folder: Path, number: int | None = None) -> list[dict[str, Any]]:
    """Events of a run or of one round, in order, with what they refer to."""
    journal, state = load(folder)
    try:
        _known(journal, state, number)
        return [event_data(e) for e in journal.events(number)]
    finally:
        journal.close()


def _known(journal: Journal, state: RunState, number: int | None) -> None:
    """UsageError for a round that has neither begun nor been recorded."""
    if number is not None and not journal.events(number) and not journal.steps(round_=number):
        raise UsageError(f"--round {number}: recorded are 0 to {len(state.rounds) - 1}")


def event_data(event: Event) -> dict[str, Any]:
    return {
        **event.payload,
        "seq": event.seq,
        "round": event.round,
        "kind": event.kind,
        "at": event.at,
    }


def tree(folder: Path, number: int | None = None) -> list[dict[str, Any]]:
    """A node per round: `{"round", "title", "children"}`; children are `{"title", "details"?, "children"}` in the order
    of what happened: observation, tool calls, model messages, plan, violations, decision, steps, outcome."""
    journal, state = load(folder)
    store = Store(folder)
    try:
        _known(journal, state, number)
        events, steps = journal.events(number), journal.steps(round_=number)
    finally:
        journal.close()
    rounds = sorted({e.round for e in events} | {s.round for s in steps})
    return [
        _round_node(
            n, [e for e in events if e.round == n], [s for s in steps if s.round == n], store
        )
        for n in rounds
    ]


def _round_node(
    number: int, events: list[Event], steps: list[Step], store: Store
) -> dict[str, Any]:
    children = [_node(event, store) for event in events if event.kind != "measured"]
    counts: dict[str, list[float]] = {}
    for step in steps:
        if step.state == "done" and step.kind in (
            "curate",
            "train",
            "generate",
            "judge",
            "verdict",
            "likelihood",
        ):
            counts.setdefault(step.kind, []).append(step.seconds or 0.0)
    if counts:
        parts = [
            {"title": f"{kind}: {len(s)} steps, {sum(s):.1f} s", "children": []}
            for kind, s in counts.items()
        ]
        children.append({"title": "steps", "children": parts})
    children += [_node(event, store) for event in events if event.kind == "measured"]
    return {
        "round": number,
        "title": "base and calibration" if number == 0 else f"round {number}",
        "children": children,
    }


def _node(event: Event, store: Store) -> dict[str, Any]:
    payload = event.payload
    node: dict[str, Any] = {"kind": event.kind, "seq": event.seq, "children": []}
    if event.kind == "planned":
        node["title"] = f"planned by {payload['planner']} (plan {payload['plan_digest'][:12]})"
        node["children"] = [_call(call) for call in payload["calls"]]
        node["children"].append(_plan_node("plan", payload["plan"]))
    elif event.kind == "observed":
        node["title"] = f"observed ({payload['observation'][:12]})"
        seen = _observation(store, payload["observation"])
        if seen:
            worst = [s for s in seen.profile.slices if s.score.mean is not None][:5]
            node["children"] = [
                {
                    "title": f"{s.objective} {s.slice}: mean {s.score.mean:.2f}, reliability {s.reliability}",
                    "children": [],
                }
                for s in worst
            ]
    elif event.kind == "checked":
        found = payload["violations"]
        node["title"] = (
            "checked: no violations" if not found else f"checked: {len(found)} violations"
        )
        node["children"] = [
            {
                "title": f"{v['path']}: {v['rule']}",
                "details": f"{v['value']} against {v['limit']}; {v['hint']}",
                "children": [],
            }
            for v in found
        ]
    elif event.kind == "decided":
        node["title"] = f"{payload['kind']} by {payload['by']}"
        node["details"] = payload["reason"]
        if payload.get("executes"):
            node["children"] = _given(store, payload["executes"])
    elif event.kind == "measured":
        node["title"] = (
            "accepted" if payload["accepted"] else "not accepted"
        ) + f": {payload['reason']}"
        node["children"] = [
            {
                "title": f"{f['objective']}: expected {_signed(f['expected'])}, measured {_signed(f['actual'])}",
                "children": [],
            }
            for f in payload["forecast"]
        ]
    elif event.kind == "trained":
        node["title"] = (
            f"trained {payload['steps']} steps on {payload['tokens']:,} tokens, loss {payload['loss']:.3f}"
        )
    elif event.kind == "curated":
        total = payload["total"]
        node["title"] = (
            f"curated {total['rows']:,} rows, {total['selected']:,} of {total['requested']:,} tokens"
        )
    elif event.kind == "failed":
        kind = f" ({payload['failure']})" if payload.get("failure") else ""
        node["title"] = f"{payload['step']} failed{kind}"
        node["details"] = payload["reason"]
        node["children"] = [_call(call) for call in payload.get("calls", [])]
    elif event.kind == "replaced":
        node["title"] = f"{payload['planner']} replaced by {payload['by']}"
        node["details"] = payload["reason"]
    else:
        node["title"] = event.kind
        node["details"] = json.dumps(payload)
    return node


def _given(store: Store, digest: str) -> list[dict[str, Any]]:
    """The plan that a person gave, where it still stands."""
    try:
        return [_plan_node(f"plan given in its place ({digest[:12]})", store.get_json(digest))]
    except MosaicError as error:
        return [{"title": str(error), "children": []}]


def _plan_node(title: str, plan: dict[str, Any]) -> dict[str, Any]:
    parts = [("rationale", plan["rationale"]), ("ratios", _weights(plan["ratios"]))]
    parts += [(f"buckets of {d}", _weights(w)) for d, w in plan["bucket_weights"].items()]
    parts += [(f"focus of {d}", json.dumps(f)) for d, f in plan.get("focus", {}).items()]
    parts.append(("expected", json.dumps(plan["expected"])))
    return {
        "title": title,
        "children": [{"title": t, "details": d, "children": []} for t, d in parts],
    }


def _call(call: dict[str, Any]) -> dict[str, Any]:
    if "conclusion" in call:
        return {"title": f"concluded: {call['conclusion']}", "children": []}
    if "tool" in call:
        title = f"asked {call['tool']} {json.dumps(call['arguments'])}"
        return {"title": title, "details": json.dumps(call["result"]), "children": []}
    message = {k: v for k, v in call.items() if k != "kind"}
    return {
        "title": str(call.get("kind", "message")),
        "details": json.dumps(message),
        "children": [],
    }


def _weights(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * w:.1f} %" for name, w in weights.items())


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f}"


def _observation(store: Store, digest: str) -> Observation | None:
    try:
        return Observation.model_validate(store.get_json(digest))
    except MosaicError:
        return None


def tree_text(nodes: list[dict[str, Any]], limit: int = 160) -> str:
    """The tree as indented lines for a terminal."""
    lines: list[str] = []

    def add(node: dict[str, Any], depth: int) -> None:
        text = node["title"] + (f": {node['details']}" if node.get("details") else "")
        whole = node["title"] == "rationale"
        text = text if whole or len(text) <= limit else text[: limit - 3] + "..."
        lines.append("  " * depth + safe(text))
        for child in node["children"]:
            add(child, depth + 1)

    for node in nodes:
        add(node, 0)
    return "\n".join(lines)


def follow(
    folder: Path, number: int | None = None, wait: Callable[[float], None] = time.sleep
) -> Iterator[dict[str, Any]]:
    """Events as they are recorded, of all rounds or of one, until the run is audited: for good, if it was extended."""
    last, store = 0, Store(folder)
    while True:
        journal = Journal.open(folder)
        try:
            events = journal.events(after=last)
        finally:
            journal.close()
        for event in events:
            last = event.seq
            if number is None or event.round == number:
                yield {**event_data(event), "text": tree_text([_node(event, store)])}
        if any(event.kind == "audited" for event in events):
            journal, state = load(folder)
            journal.close()
            if state.audit:
                return
        if not events:
            wait(POLL)


def diff_data(folder: Path, first: int, second: int) -> dict[str, Any]:
    """Two rounds side by side: plan cells, selection scores, slices; each `{"what", "first", "second", "change"}`."""
    journal, state = load(folder)
    journal.close()
    a, b = pick_round(state, first), pick_round(state, second)
    scores = [_pair(o, _mean(a, o), _mean(b, o)) for o in state.objectives]
    keys = [(s.objective, s.slice) for s in a.profile.slices]
    keys += [(s.objective, s.slice) for s in b.profile.slices if (s.objective, s.slice) not in keys]
    slices = [_pair(f"{o} {s}", _slice(a, o, s), _slice(b, o, s)) for o, s in sorted(keys)]
    return {
        "rounds": [first, second],
        "plan": _plan_pairs(a, b),
        "scores": scores,
        "slices": slices,
    }


def _pair(what: str, first: float | None, second: float | None) -> dict[str, Any]:
    change = None if first is None or second is None else round(second - first, 6)
    return {"what": what, "first": first, "second": second, "change": change}


def _mean(round_: Round, objective: str) -> float | None:
    return round_.scores[objective]["selection"].mean


def _slice(round_: Round, objective: str, name: str) -> float | None:
    found = round_.profile.find(objective, name)
    return found.score.mean if found else None


def _plan_pairs(a: Round, b: Round) -> list[dict[str, Any]]:
    names: list[str] = []
    values: list[dict[str, float]] = []
    for round_ in (a, b):
        plan = round_.plan
        found: dict[str, float] = {}
        if plan:
            found |= {f"ratios.{d}": w for d, w in plan.ratios.items()}
            found |= {
                f"bucket_weights.{d}.{k}": w
                for d, per in plan.bucket_weights.items()
                for k, w in per.items()
            }
        values.append(found)
        names += [n for n in found if n not in names]
    return [_pair(name, values[0].get(name), values[1].get(name)) for name in sorted(names)]


def why_data(folder: Path, row: str, number: int | None = None) -> dict[str, Any]:
    """Why a pool row was trained on: row -> bucket -> plan -> the evidence that asked for it.

    Each round that holds the row is one entry; UsageError where none does.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    journal, state = load(folder)
    store = Store(folder)
    entries = []
    try:
        for round_ in state.executed:
            if round_.plan is None or (number is not None and round_.round != number):
                continue
            # By content: a round whose mixture an earlier one had reads that one's training set.
            report = round_.curation.json_data() if round_.curation else None
            curated = next(
                s.result
                for s in journal.steps("curate")
                if s.result and s.result["report"] == report
            )
            with pq.ParquetFile(
                pa.BufferReader(store.path(str(curated["training_set"])).read_bytes())
            ) as file:
                # Threads that still read ahead when the process ends abort it.
                table = file.read(use_threads=False)
            rows = table.filter(pc.equal(table["id"], row)).to_pylist()
            if rows:
                observed = [
                    s
                    for s in journal.steps("observe", round_.round)
                    if s.state == "done" and s.result
                ]
                digest = str((observed[-1].result or {})["observation"])
                entries.append(
                    _why(round_, rows, Observation.model_validate(store.get_json(digest)))
                )
    finally:
        journal.close()
    if not entries:
        where = f"in round {number}" if number is not None else "in any round"
        raise UsageError(f"{row}: no such row was trained on {where} of {folder}")
    return {"row": row, "rounds": entries}


def _why(round_: Round, rows: list[dict[str, Any]], seen: Observation) -> dict[str, Any]:
    plan = round_.plan
    assert plan is not None
    dataset, bucket = rows[0]["dataset"], rows[0]["bucket"]
    before, after = (
        plan_shares(p, seen.bucket_proportions).get((dataset, bucket), 0.0)
        for p in (seen.last_plan, plan)
    )
    report = round_.curation.datasets[dataset].buckets[bucket] if round_.curation else None
    evidence = [
        s.json_data()
        for o in seen.objectives
        if dataset in o.datasets and (s := seen.profile.find(o.name, bucket)) is not None
    ]
    return {
        "round": round_.round,
        "dataset": dataset,
        "bucket": bucket,
        "windows": len(rows),
        "topup": any(r["topup"] for r in rows),
        "focus": bool(rows[0].get("focus")),
        "weight": rows[0]["weight"],
        "share": {"before": before, "after": after},
        "delivered": report.json_data() if report else None,
        "plan_digest": plan.content_digest,
        "planner": round_.planner,
        "rationale": plan.rationale,
        "evidence": evidence,
    }


def why_text(data: dict[str, Any]) -> str:
    lines = [f"row {data['row']}"]
    for entry in data["rounds"]:
        how = (
            "a last pass spent what was left (topup)"
            if entry["topup"]
            else "the bucket's quota reached it"
        )
        share = entry["share"]
        lines += [
            f"round {entry['round']}",
            f"  bucket {entry['bucket']} of {entry['dataset']}: {how}"
            + (", preferred by the focus" if entry["focus"] else ""),
            f"  plan {entry['plan_digest'][:12]} of {entry['planner']}: {100 * share['before']:.1f} % of the tokens before, "
            f"{100 * share['after']:.1f} % now",
        ]
        for s in entry["evidence"]:
            mean = "not scored" if s["score"]["mean"] is None else f"mean {s['score']['mean']:.2f}"
            rate = "" if s["failure_rate"] is None else f", {100 * s['failure_rate']:.0f} % failed"
            lines.append(
                f"  evidence: {s['objective']} {s['slice']} {mean}{rate}, reliability {s['reliability']}"
            )
        lines.append(f"  rationale: {entry['rationale']}")
    return "\n".join(safe(line) for line in lines)


def replay_data(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What another planner would have proposed at each recorded observation. Executes and records nothing."""
    from agent.planners.toolbox import open_toolbox
    from mosaic.app.runs import run_config
    from mosaic.app.wiring import build_planner
    from training.data.pool import Pool

    config = run_config(folder)
    planner, pool, store = (
        build_planner(kind, config.planner),
        Pool.open(Path(config.pool)),
        Store(folder),
    )
    journal, state = load(folder)
    observed = [s for s in journal.steps("observe") if s.state == "done" and s.result]
    journal.close()
    lines = []
    for step in observed:
        seen = Observation.model_validate(store.get_json(str((step.result or {})["observation"])))
        earlier = [r for r in state.executed if r.round < seen.round]
        files = (
            state.calibration_files
            if not [r for r in earlier if r.plan]
            else state.files[earlier[-1].round]
        )

        toolbox = open_toolbox(seen, pool, store, files)
        plan = planner.propose(seen, toolbox)[0]
        done = next((r.plan for r in state.rounds if r.round == seen.round), None)
        lines.append(
            {
                "round": seen.round,
                "planner": planner.kind,
                "plan": plan.json_data(),
                "violations": [v.json_data() for v in toolbox.violations(plan)],
                "distance": None
                if done is None
                else round(plan_distance(plan, done, seen.bucket_proportions), 4),
                "executed": done.json_data() if done else None,
            }
        )
    return lines
