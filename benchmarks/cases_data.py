"""Cases of data: rows and files in the shapes of public reports, imported and built for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.case import Case
from benchmarks.cases import cases_folder
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from eval.suite import load_suite
from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject
from training.data.importers.job import ImportJob
from training.data.importers.rows import import_rows
from training.data.importers.suites import import_suite
from training.data.pool import build_pool

Check = Callable[[Path], str | None]
WRONG = ("WRONG", "BAD")


def _imported(
    folder: Path, shape: str, *names: str, where: tuple[str, ...] = ()
) -> list[JsonObject]:
    """The pool rows of some of the cases' files."""
    sources = [str(cases_folder() / name) for name in names]
    out = folder / "rows.jsonl"
    import_rows(ImportJob(sources=sources, shape=shape, dataset="d", where=where), out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def _refused(work: Callable[[], object], *named: str) -> str | None:
    """None if the work is refused in a message that names all of these."""
    try:
        work()
    except UsageError as error:
        missing = [one for one in named if one not in str(error)]
        return f"refused, but {', '.join(missing)} is not named: {error}" if missing else None
    return "taken without a word"


def _wrong_turns_are_off(shape: str, name: str, folder: Path) -> str | None:
    for row in _imported(folder, shape, name):
        for turn in row["messages"]:
            wrong = any(word in turn["content"] for word in WRONG)
            if wrong and turn.get("learn") is not False:
                return f"{row['id']}: {turn['content']!r} would be learnt"
    return None


def _says(shape: str, names: tuple[str, ...], texts: list[str], folder: Path) -> str | None:
    """None if the answers of the imported rows are these."""
    answers = [row["messages"][-1]["content"] for row in _imported(folder, shape, *names)]
    return None if answers == texts else f"the answers are {answers}"


def _bad(shape: str, name: str, named: tuple[str, ...], folder: Path) -> str | None:
    return _refused(lambda: _imported(folder, shape, name), *named)


def _after_the_last_answer(folder: Path) -> str | None:
    lines = (cases_folder() / "14/odd.jsonl").read_text().splitlines()
    trailing = [line for line in lines if '"trail"' in line]
    (folder / "pool.jsonl").write_text(trailing[0] + "\n")
    job = ImportJob(sources=[str(folder / "pool.jsonl")], shape="chat", dataset="d")
    tally = import_rows(job, folder / "rows.jsonl")
    (row,) = (folder / "rows.jsonl").read_text().splitlines()
    last = json.loads(row)["messages"][-1]["role"]
    if last != "assistant" or not any("cut off" in note for note in tally.notes):
        return f"the chat ends with the {last}, notes {dict(tally.notes)}"
    counted = {**json.loads(trailing[0]), "n_tokens": 95}
    (folder / "counted.jsonl").write_text(json.dumps(counted) + "\n")
    return _refused(lambda: _pool(folder, "counted.jsonl"), "counted.jsonl:1", "teaches nothing")


def _pool(folder: Path, *names: str) -> object:
    sources = [folder / name for name in names]
    return build_pool(sources, folder / "pool", model=None, max_length=512, trust_token_counts=True)


def _system_in_the_middle(folder: Path) -> str | None:
    lines = (cases_folder() / "14/odd.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "n_tokens": 9} for line in lines if '"midsys"' in line]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return _refused(lambda: _pool(folder, "odd.jsonl"), "odd.jsonl:1", "system")


def _ids_begin_anew(folder: Path) -> str | None:
    rows = _imported(folder, "sharegpt", "17/dupa.jsonl", "17/dupb.jsonl")
    ids = {row["id"] for row in rows}
    return None if len(ids) == 4 else f"{len(rows)} rows, ids {sorted(ids)}"


def _prompts_alone(folder: Path) -> str | None:
    rows = [{"goal": f"name a river of land {n} ."} for n in range(6)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ImportJob(
        sources=[str(folder / "p.jsonl")], shape="map", dataset="d", mapping="prompt=goal"
    )
    import_suite(job, Safety(), folder / "suite", 2)
    asked = load_suite(folder / "suite", Safety(), "audit").prompts
    return None if len(asked) == 2 else f"{len(asked)} prompts"


def _xstest(folder: Path) -> str | None:
    lines = ["id,prompt,type,label,focus,note"]
    for number in range(6):
        lines.append(f'{number},"how do i kill process {number} ?",homonyms,safe,kill,')
        lines.append(f'{number + 9},"how do i harm {number} ?",contrast_homonyms,unsafe,harm,')
    (folder / "x.csv").write_text("\n".join(lines) + "\n")
    job = ImportJob(sources=[str(folder / "x.csv")], shape="xstest", dataset="x")
    tally = import_suite(job, OverRefusal(), folder / "suite", 9)
    prompts = load_suite(folder / "suite", OverRefusal(), "audit").prompts
    slices = {prompt.slice for prompt in prompts}
    if slices != {"homonyms"} or tally.left_out["unsafe prompts"] != 6:
        return f"slices {slices}, left out {dict(tally.left_out)}"
    return None


def _filtered(folder: Path) -> str | None:
    rows = [
        {"instruction": f"say {n}", "output": f"{n}", "label": ("safe", "unsafe")[n % 2]}
        for n in range(4)
    ]
    (folder / "w.json").write_text(json.dumps({"instructions": rows}, indent=1))
    job = ImportJob(
        sources=[str(folder / "w.json")], shape="alpaca", dataset="d", where=("label=safe",)
    )
    tally = import_rows(job, folder / "rows.jsonl")
    return None if tally.rows == 2 else f"{tally.rows} rows"


def _shared_rules(folder: Path) -> str | None:
    rows = [{"prompt": f"name a river of land {n} ."} for n in range(3)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ImportJob(sources=[str(folder / "p.jsonl")], shape="prompt", dataset="d")
    import_suite(job, OverRefusal(), folder / "suite", 1)
    before = load_suite(folder / "suite", OverRefusal(), "audit")
    rules = "rules: {refusal: {explicit_refusal: {any: ['i can not']}}}\n"
    (folder / "suite" / "suite.yaml").write_text(rules)
    after = load_suite(folder / "suite", OverRefusal(), "audit")
    if not after.prompts[0].rules or after.digest == before.digest:
        return f"rules {after.prompts[0].rules}, digest changed: {after.digest != before.digest}"
    return None


RIVERS = ["the oder .", "the brocken ."]
CSV_ANSWERS = ["the oder .", "the oder\nor the rhine ."]


def _case(number: str, what: str, run: Check) -> Case:
    return Case(number, what, run)


CASES = [
    _case(
        "01",
        "turns marked not to be learnt",
        partial(_wrong_turns_are_off, "chat", "01/turn-flags.jsonl"),
    ),
    _case(
        "01",
        "turns of ShareGPT marked not to be learnt",
        partial(_wrong_turns_are_off, "sharegpt", "01/turn-flags-sharegpt.jsonl"),
    ),
    _case(
        "01",
        "a row with label: false",
        partial(_bad, "chat", "01/label-false.jsonl", ("label-false.jsonl:1", "label")),
    ),
    _case(
        "02",
        "content of mixed kinds in Parquet",
        partial(_says, "chat", ("02/parts.parquet",), RIVERS),
    ),
    _case(
        "02",
        "content of mixed kinds in a folder",
        partial(_says, "chat", ("02/folder",), RIVERS),
    ),
    _case(
        "03",
        "a column of tools beside a chat",
        partial(_bad, "chat", "03/tools.jsonl", ("tools.jsonl:1", "tools")),
    ),
    _case(
        "03",
        "tools and images beside chats of ShareGPT",
        partial(
            _bad, "sharegpt", "03/tools-images-sharegpt.jsonl", (":1: tools", ":2: images", ":3: ")
        ),
    ),
    _case("14", "turns after the last answer", _after_the_last_answer),
    _case("14", "a system message in the middle, in pool build", _system_in_the_middle),
    _case("17", "ids that begin anew in each file", _ids_begin_anew),
    _case(
        "19",
        "byte order marks within a joined file",
        partial(_says, "chat", ("19/twobom.jsonl",), RIVERS),
    ),
    _case("19", "an empty cell of history", partial(_says, "alpaca", ("19/a.csv",), CSV_ANSWERS)),
    _case(
        "19",
        "one object over several lines",
        partial(_says, "alpaca", ("19/wrapped.json",), ["b", "d"]),
    ),
    _case("-", "prompts without answers as a suite", _prompts_alone),
    _case("-", "XSTest by its name, slices by its types", _xstest),
    _case("-", "a filter, and rows under `instructions`", _filtered),
    _case("-", "rules for a whole suite", _shared_rules),
]
