"""What an extension costs: each one that `docs/extending.md` shows, applied to a copy and run.

The document is the input. Its blocks say what they are in their first line: `file=PATH` is a new
file, `diff` a change, `config` what a config says, `suite=FOLDER` a prompt, `stored=NAME` a line
to score and `scored` its result.

`python -m benchmarks.extension KIND FOLDER` is the part that runs in a process over the copy.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.figures import Rows, figure, not_measured
from benchmarks.house import PACKAGES, ROOT

DOCUMENT = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^```([^\n]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROLES = ("steering", "selection", "audit")
# Section of the document -> (what runs with it, changed lines elsewhere at most).
EXTENSIONS = {
    "A planner": ("planner", 2),
    "An objective in YAML": ("objective", 0),
    "An objective in Python": ("objective", 0),
    "A training recipe": ("recipe", 2),
}
SECONDS = 300


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what it is (`file`, `config`, ...), of what, and its text."""

    language: str
    what: str
    name: str
    text: str


@dataclass(frozen=True)
class Cost:
    """New files, and lines added or removed in others."""

    new_files: int
    changed_lines: int


def extension(quick: bool) -> Rows:
    """New files and changed lines of each extension, and whether it runs. `quick` changes nothing."""
    rows = []
    for title, (kind, lines) in EXTENSIONS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cost = apply(section(title), folder)
            done = run(kind, folder)
        rows.append(figure(f"{title}: new files", cost.new_files, "files", at_most=1))
        what = f"{title}: changed lines elsewhere"
        rows.append(figure(what, cost.changed_lines, "lines", at_most=lines))
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
            rows.append(not_measured(f"{title}: does not run: {said[0]}", met=False))
        else:
            rows.append(not_measured(f"{title}: {done.stdout.strip()}", met=True))
    return rows


# The document


def section(title: str, text: str | None = None) -> list[Block]:
    """The blocks below one `##` heading. Raises KeyError for an unknown heading."""
    parts = {}
    for part in re.split(r"^## ", text or DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        parts[heading] = body
    blocks = []
    for info, body in BLOCK.findall(parts[title]):
        language, _, rest = info.partition(" ")
        what, _, name = rest.partition("=")
        blocks.append(Block(language, what or language, name, body))
    return blocks


# The copy: `copy` holds the packages, `work` what a user has beside a config.


def apply(blocks: list[Block], folder: Path) -> Cost:
    """Copy the packages into a folder, apply the blocks, and count.

    Raises CalledProcessError if a diff does not fit any more.
    """
    copy, work = folder / "copy", folder / "work"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    before = texts(copy)
    config = yaml.safe_load((ROOT / "mosaic" / "lab" / "data" / "config.yaml").read_text())
    lab = copy / "mosaic" / "lab" / "data"
    config |= {"base_model": str(lab / "model"), "pool": str(lab / "pool")}
    for objective in config["objectives"].values():
        objective["suite"] = str(lab / objective["suite"])
    users = 0
    for block in blocks:
        if block.what == "file":
            packaged = block.name.split("/")[0] in PACKAGES
            users += not packaged
            write((copy if packaged else work) / block.name, block.text)
        elif block.what == "diff":
            patch(copy, block.text)
        elif block.what == "config":
            config |= yaml.safe_load(block.text)
        elif block.what == "suite":
            write_suite(work / block.name, json.loads(block.text))
        else:
            write(work / f"{block.what}.json", json.dumps([block.name, json.loads(block.text)]))
    write(work / "config.yaml", yaml.safe_dump(config))
    cost = counted(before, texts(copy))
    return Cost(cost.new_files + users, cost.changed_lines)


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_suite(folder: Path, prompt: dict) -> None:
    """A suite of the prompt for each role; no two may share a prompt."""
    for number, role in enumerate(ROLES):
        turns = [*prompt["turns"][:-1], f"{prompt['turns'][-1]} {number}"]
        write(folder / f"{role}.jsonl", json.dumps({**prompt, "turns": turns}) + "\n")


def patch(copy: Path, text: str) -> None:
    """Apply a diff as it stands. A repository around the copy does not count."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    command = ["git", "apply", "-"]
    subprocess.run(command, cwd=copy, input=text, env=environment, text=True, check=True)


def texts(copy: Path) -> dict[str, str]:
    """Path -> text of every source file; other files are data and are not extended."""
    found = {}
    for path in sorted(copy.rglob("*")):
        if path.suffix in (".py", ".md", ".yaml", ".j2"):
            found[str(path.relative_to(copy))] = path.read_text()
    return found


def counted(before: Mapping[str, str], after: Mapping[str, str]) -> Cost:
    """Files that are new, and lines that were added to or removed from others.

    >>> counted({"a": "1\\n2\\n"}, {"a": "1\\n3\\n4\\n", "b": "5\\n"})
    Cost(new_files=1, changed_lines=3)
    """
    changed = 0
    for path, text in before.items():
        lines = difflib.ndiff(text.splitlines(), after.get(path, "").splitlines())
        changed += sum(line.startswith(("+ ", "- ")) for line in lines)
    return Cost(len(after.keys() - before.keys()), changed)


# What runs over the copy


def run(kind: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run something real with the extension. Only the benchmarks come from this checkout."""
    path = os.pathsep.join([str(folder / "copy"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "benchmarks.extension", kind, str(folder)]
    return subprocess.run(
        command,
        cwd=folder / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def main(kind: str, folder: Path) -> str:
    """Run one kind of extension in this process; what it did, in words."""
    import mosaic

    if not Path(mosaic.__file__).is_relative_to(folder.resolve()):
        raise SystemExit(f"{mosaic.__file__} is not the copy")
    return {"planner": planner, "objective": objective, "recipe": recipe}[kind](folder / "work")


def planner(work: Path) -> str:
    """A run of two rounds with stand-ins for trainer and generator; every plan is the planner's."""
    from benchmarks.standins import StandIn, Witness
    from mosaic.app.config_file import load_config
    from mosaic.app.replay import replay
    from mosaic.app.views.report_data import load

    settings = load_config("config.yaml").planner
    overrides = [f"planner={json.dumps(settings.json_data())}", "rounds=2"]
    standin = StandIn.make(*overrides, per_slice=4)
    standin.create(work / "run")
    standin.run(work / "run", Witness(work / "ledger"))
    journal, state = load(work / "run")
    journal.close()
    planners = [round_.planner for round_ in state.rounds[1:]]
    assert planners == [settings.kind] * 2, planners
    assert len(replay(work / "run", settings.kind)) == 2
    return f"planned {len(planners)} rounds of a run"


def objective(work: Path) -> str:
    """Open the suites of the config, and score the stored line with the command."""
    from mosaic.app.config_file import load_config
    from mosaic.app.wiring import open_suites

    name, stored = json.loads((work / "stored.json").read_text())
    _, wanted = json.loads((work / "scored.json").read_text())
    (found,) = open_suites(load_config("config.yaml"))[1].values()
    assert sorted(found) == sorted(ROLES), found
    (work / "items.jsonl").write_text(json.dumps(stored) + "\n")
    command = ["score", name, "items.jsonl", "--config", "config.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "mosaic", *command], capture_output=True, text=True, check=True
    )
    scored = json.loads(done.stdout)
    assert scored == wanted, f"the command gives {json.dumps(scored)}"
    return "opened its suites and scored a line as shown"


def recipe(work: Path) -> str:
    """What a round is charged, and the smoke test: two steps of each try on the bundled model."""
    from mosaic.app.config_file import load_config
    from mosaic.app.smoke import smoke_test
    from mosaic.app.wiring import check_recipe, open_inputs

    config = load_config("config.yaml")
    assert config.recipe.kind == "best_of", config.recipe.kind
    check_recipe(config)
    charged = config.tokens_per_round / config.budget.tokens_per_round
    assert charged == config.recipe.epochs * config.recipe.tries, charged
    finding, _ = smoke_test(config, open_inputs(config), serve=False)
    assert f"after {2 * config.recipe.tries} steps" in finding.result, finding.result
    return f"charges {charged:g} times the selected tokens; {finding.result}"


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2])))
