"""Seeded mistakes in our own code. For each there is a check that must catch it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Rows, figure

ROOT = Path(__file__).resolve().parents[1]
CODE = (
    "agent",
    "benchmarks",
    "eval",
    "mosaic",
    "prompts",
    "tests",
    "tools",
    "training",
    "pyproject.toml",
)
FAULTS = "tests/durability/test_faults.py"


@dataclass(frozen=True)
class Mutant:
    """A mistake: text replaced in files, and the benchmark or test that must then fail."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    check: str


MUTANTS = [
    Mutant(
        "files are not flushed",
        (("mosaic/core/store.py", "            view = view[os.write(descriptor, view) :]\n        os.fsync(descriptor)", "            view = view[os.write(descriptor, view) :]"),),
        "power_loss",
    ),
    Mutant("the folder is not flushed after a rename", (("mosaic/core/store.py", "                _sync(self.root)\n", ""),), "power_loss"),
    Mutant(
        "artifacts are written in place",
        (("mosaic/core/store.py", 'temporary = self.root / f".{os.getpid()}-{uuid.uuid4().hex}.tmp"', "temporary = target"),),
        "crash",
    ),
    Mutant(
        "the effect comes before the intent",
        (("mosaic/core/steps.py", "            self.journal.begin(inputs,", "            effect()\n            self.journal.begin(inputs,"),),
        f"{FAULTS}::test_stand_ins_are_called_once_for_each_effect",
    ),
    Mutant(
        "a step that was only begun counts as done",
        (
            ("mosaic/core/journal.py", """self._rows("steps", "key = ? and state = 'done'", (inputs.key,))""", """self._rows("steps", "key = ?", (inputs.key,))"""),
        ),
        "crash",
    ),
    Mutant(
        "a planner draws without its seed",
        (("agent/planners/baselines.py", "np.random.default_rng(seed)", "np.random.default_rng()"),),
        "crash",
    ),
    Mutant("no lock is taken", (("mosaic/core/lock.py", "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),), "races"),
    Mutant("the fencing number is not compared", (("mosaic/core/journal.py", 'if fenced and int(self.meta("fence")) != self.fence:', "if False:"),), "races"),
    Mutant("rows are read without their digest", (("mosaic/core/journal.py", "if checksum(row) != stored:", "if False:"), ("mosaic/core/soundness.py", "if checksum(row) != stored:", "if False:")), "corruption"),
    Mutant("artifacts are read without their digest", (("mosaic/core/store.py", "        if actual != digest:", "        if False:"),), "corruption"),
    Mutant("the budget is not compared where it is changed", (("mosaic/core/journal.py", "where id = 0 and held + spent + :n <= cap", "where id = 0"),), "overspend"),
    Mutant(
        "an approval is not bound to its plan",
        (
            ("agent/approval.py", "        if given != asked:", "        if False:"),
            ("agent/nodes/approving.py", "    runs = stands.executes", '    runs = state["plans"]'),
            ("agent/nodes/trials.py", " or not {*plans} <= {*approval.plans}:", ":"),
        ),
        "approvals",
    ),
    Mutant(
        "unknown fields of a plan are ignored",
        (("mosaic/core/types/base.py", 'extra="forbid"', 'extra="ignore"'),),
        "tests/app/test_cli.py",
    ),
    Mutant(
        "a restart reuses the old thread",
        (("agent/graph.py", '"thread_id": f"{journal.run}:{journal.fence}"', '"thread_id": journal.run'), ("agent/graph.py", "value: Any = fresh(len(context.state.rounds))", "value: Any = fresh(len(context.state.rounds)) if journal.fence == 1 else None")),
        "crash",
    ),
    Mutant(
        "threads do not take turns at the journal",
        (
            ("mosaic/core/journal.py", "self._turn = threading.RLock()", "self._turn = nullcontext()"),
            ("mosaic/core/journal.py", "from contextlib import contextmanager", "from contextlib import contextmanager, nullcontext"),
        ),
        "concurrency",
    ),
    Mutant(
        "a decision may name any question",
        (("mosaic/app/decisions.py", "if len(request) < MIN_PREFIX or not asked.request.startswith(request):", "if False:"),),
        "approvals",
    ),
    Mutant(
        "a changed run goes on unchecked",
        (("mosaic/app/loop.py", "        check_before_run(config, inputs, say, folder.resolve().parent, meters)\n        runs.accept_changes", "        runs.accept_changes"),),
        "tests/app/test_resumes.py",
    ),
]  # fmt: skip


def caught(mutant: Mutant | None, check: str, folder: Path) -> bool:
    """Whether the check fails in a copy of the project with the mistake."""
    tree = folder / "tree"
    tree.mkdir()
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, tree / name)
    for path, old, new in mutant.changes if mutant else ():
        text = (tree / path).read_text()
        if old not in text:
            raise RuntimeError(f"{path} has no {old!r} any more")
        (tree / path).write_text(text.replace(old, new))
    is_test = "/" in check
    command = ["pytest", "-q", "-x", check] if is_test else ["benchmarks", check, "--quick"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        timeout=900,
    )
    shutil.rmtree(tree)
    return done.returncode != 0


def mutants(quick: bool) -> Rows:
    """All mistakes, or every fourth. Without a mistake the checks must pass."""
    chosen = MUTANTS[::4] if quick else MUTANTS
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for check in sorted({mutant.check for mutant in chosen}):
            failed = int(caught(None, check, folder))
            rows.append(figure(f"{check} fails without a mistake", failed, "failures", at_most=0))
        for mutant in chosen:
            found = int(caught(mutant, mutant.check, folder))
            rows.append(figure(f"caught: {mutant.name}", found, "of 1", at_least=1))
    return rows
