"""An objective that a person brings as Python: `kind: python`.

    {kind: python, class: "my_objective:Mine"}

The class is looked for in the folder of the config, in `my_objective.py`; a path (`code/mine.py`)
or dots (`code.mine`) name a file further below or elsewhere. It implements `Objective`
(`eval/objectives/base.py`), less `name` and `rules`: its name is the key in the config, and its
rules are the digest of its file, with the `rules` that it may have.

Nothing is imported before it is asked for. `describe` says which file would be, and its digest;
`open_python` then runs the very bytes of that digest: neither a cached `.pyc` nor a file that was
changed in between can take their place. An objective is one file, since only that file's digest
stands in the identity of its judgments: modules beside it are not found.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Literal, NamedTuple, cast

from eval.objectives.base import (
    Channel,
    Channels,
    Constraints,
    Line,
    Malformed,
    Objective,
    Side,
    Unchecked,
    labels_of,
)
from eval.objectives.config import PythonConfig
from mosaic.core.errors import MosaicError, UsageError
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Prompt, Response, Scored
from prompts.load import Prompt as PromptFile

# What a class must have: attributes, and methods with the number of their arguments.
ATTRIBUTES = ("evidence", "answers", "request", "fields")
METHODS = {"words": 1, "stored": 2, "check": 2, "score": 1, "prompt_side": 3, "breakdown": 1}


class Described(NamedTuple):
    """The code that a config names: its file, and the SHA-256 of the file's bytes."""

    file: Path
    digest: str


def describe(config: PythonConfig, folder: Path) -> Described:
    """Which file `open_python` would run, and its digest. Imports nothing.

    `folder` is the config file's. UsageError if the file cannot be read.
    """
    file = config.file(folder)
    return Described(file, hashlib.sha256(_source(config, file)).hexdigest())


def open_python(name: str, config: PythonConfig, folder: Path, digest: str = "") -> PythonObjective:
    """Import the class that a config names, and make the objective called `name` of it.

    UsageError if the class is missing or cannot be made, or a member of `Objective` is missing;
    and, if `digest` is given, unless it is the file's: what a person was shown is what runs.
    """
    file = config.file(folder)
    source = _source(config, file)
    found = hashlib.sha256(source).hexdigest()
    if digest and found != digest:
        raise UsageError(f"{file}: it has changed since it was looked at; start again")
    module = _module(file, source, found)
    class_name = config.class_name
    where = f"{file}: {class_name}"
    made = getattr(module, class_name, None)
    if not inspect.isclass(made):
        raise UsageError(f"{where}: the file has no class of that name")
    try:
        inner = made()
    except Exception as error:
        raise UsageError(f"{where}() fails: {type(error).__name__}: {error}") from error
    _check_members(inner, where)
    return PythonObjective(name, cast(Objective, inner), found)


class PythonObjective:
    """Somebody's objective, under the name in the config and with the digest of its code."""

    def __init__(self, name: str, inner: Objective, digest: str) -> None:
        self.name = name
        self.inner = inner
        self.evidence: Literal["answers", "likelihood"] = inner.evidence
        self.answers: tuple[Channel, ...] = inner.answers
        self.request: tuple[Channel, ...] = inner.request
        self.fields: Mapping[str, object] = inner.fields
        self.rules = digest_of(["python", digest, getattr(inner, "rules", None)])

    def words(self, side: Side) -> PromptFile:
        return self.inner.words(side)

    def stored(self, prompt: Prompt, items: Channels) -> dict[str, object]:
        return self.inner.stored(prompt, items)

    def labels(self, prompt: Prompt) -> tuple[str, int, int]:
        return labels_of(self.inner, prompt)

    def check(self, prompt: Prompt, response: Response) -> dict[str, object]:
        with self._named("check"):
            return self.inner.check(prompt, response)

    def score(self, line: Line) -> Scored:
        with self._named("score"):
            scored = self.inner.score(line)
        if not isinstance(scored, Scored):
            raise UsageError(f"objectives.{self.name}: score gives {scored!r}, not a Scored")
        return scored

    def prompt_side(
        self, prompt_items: Channels, turns: int, constraints: Constraints
    ) -> tuple[str, int, int]:
        return self.inner.prompt_side(prompt_items, turns, constraints)

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        with self._named("breakdown"):
            return self.inner.breakdown(scored)

    @contextmanager
    def _named(self, method: str) -> Iterator[None]:
        """A fault of the class's own as a UsageError with its line, and not as ours."""
        try:
            yield
        except (Malformed, Unchecked, MosaicError):
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise UsageError(
                f"objectives.{self.name}: {method} fails at {last.filename}:{last.lineno}: "
                f"{type(error).__name__}: {error}"
            ) from error


def _source(config: PythonConfig, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"class {config.class_!r}: {file}: {error.strerror}; the file is looked for in the "
            "folder of the config"
        ) from None


class _SourceLoader(SourceFileLoader):
    """Loads the source that it is given. Compiled code on the disk is neither read nor written."""

    def __init__(self, fullname: str, path: str, source: bytes) -> None:
        super().__init__(fullname, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.source, self.path)


def _module(file: Path, source: bytes, digest: str) -> ModuleType:
    """The module of some source, imported under a name of its own: once for each content."""
    name = f"mosaic_objective_{file.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _SourceLoader(name, str(file), source)
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    if spec is None:
        raise UsageError(f"{file}: it cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being imported
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(
            f"{file}: the import fails: {type(error).__name__}: {error}; an objective is one file, "
            "which may import installed packages only"
        ) from error
    return module


def _check_members(inner: object, where: str) -> None:
    """UsageError that names the members of `Objective` that are missing or of another shape."""
    needed = [*ATTRIBUTES, *METHODS]
    members: dict[str, object] = {m: getattr(inner, m) for m in needed if hasattr(inner, m)}
    missing = [member for member in needed if member not in members]
    if missing:
        raise UsageError(
            f"{where} is not an objective: it has no {', '.join(missing)}; an objective has "
            f"{', '.join(needed)} (eval/objectives/base.py)"
        )
    if members["evidence"] not in ("answers", "likelihood"):
        raise UsageError(
            f"{where}.evidence is {members['evidence']!r}; it is 'answers' or 'likelihood'"
        )
    for side in ("answers", "request"):
        channels = members[side]
        if not isinstance(channels, tuple) or not all(isinstance(c, Channel) for c in channels):
            raise UsageError(f"{where}.{side} is {channels!r}; it is a tuple of Channel")
    if not isinstance(members["fields"], Mapping):
        raise UsageError(f"{where}.fields is {members['fields']!r}; it maps names to annotations")
    for method, count in METHODS.items():
        if not _takes(members[method], count):
            raise UsageError(f"{where}.{method} is not a method of {count} argument(s)")


def _takes(method: object, count: int) -> bool:
    """Whether a method can be called with so many arguments by position."""
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*range(count))
    except TypeError:
        return False
    return True
