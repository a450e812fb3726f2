"""Suites: prompts with their prompt-side labels, in three disjoint roles, and checks of both."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from eval.chat.strict_json import NotStrict, strict_json
from eval.ifeval import unusable
from eval.judges.rules import check_rules
from eval.objectives.base import LabelsPrompts, Malformed, Objective, labels_of
from eval.suite_defaults import DEFAULTS, SuiteDefaults, read_defaults, with_defaults
from mosaic.core.errors import UsageError
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Prompt, Response

MAX_BYTES = 16 * 1024 * 1024
# Faults of one file that a message names; the others are counted.
MAX_TOLD = 10


@dataclass(frozen=True)
class Suite:
    """Prompts of one objective in one role, in file order."""

    objective: str
    role: str
    prompts: list[Prompt]
    digest: str


@dataclass(frozen=True)
class IndependentSuite:
    """Tests that no decision reads: opened once, at the end of a run, and reported apart.

    The role of its suite is the name under which the config has it.
    """

    objective: Objective
    suite: Suite


def load_suite(folder: Path, objective: Objective, role: str) -> Suite:
    """Read `<folder>/<role>.jsonl` and `<folder>/suite.yaml`, which holds what prompts share.

    All lines with faults are named in a UsageError with file:line. So is a folder that says it measures something else.

    The stored slice, weight and validity must be what the objective's prompt-side rules say, so
    that slice means are comparable between rounds and with pool buckets.
    """
    measured = read_defaults(folder).objective
    if isinstance(measured, str) and measured != objective.name:
        raise UsageError(
            f"{folder / DEFAULTS}: objective: the suite measures {measured}, and is used for "
            f"{objective.name}"
        )
    prompts: list[Prompt] = []
    faults: list[str] = []
    for where, prompt in _lines(folder, role, faults):
        prompts.append(prompt)
        if objective.evidence == "answers" or isinstance(objective, LabelsPrompts):
            try:
                _check_labels(prompt, objective, where)
            except UsageError as fault:
                faults.append(str(fault))
    _tell(faults)
    return Suite(objective.name, role, prompts, prompts_digest(prompts))


def load_independent(folder: Path, name: str, objective: Objective) -> IndependentSuite:
    """Read `<folder>/audit.jsonl`, checked like any suite, as the independent suite `name`."""
    suite = load_suite(folder, objective, "audit")
    return IndependentSuite(objective, replace(suite, role=name))


def read_prompts(folder: Path, role: str) -> tuple[list[Prompt], str]:
    """The prompts of a suite and its digest, for those who only show them.

    No objective is opened, so no code of somebody's own runs, and labels are not checked.
    """
    faults: list[str] = []
    prompts = [prompt for _, prompt in _lines(folder, role, faults)]
    _tell(faults)
    return prompts, prompts_digest(prompts)


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """What identifies prompts in their order."""
    return digest_of([prompt.json_data() for prompt in prompts])


def _tell(faults: Sequence[str]) -> None:
    """Raise UsageError with the first faults of a file, if there are any; the others are counted."""
    if faults:
        more = len(faults) - MAX_TOLD
        last = [f"and {more:,} more lines of this file"] if more > 0 else []
        raise UsageError("\n".join([*faults[:MAX_TOLD], *last]))


def _lines(folder: Path, role: str, faults: list[str]) -> Iterator[tuple[str, Prompt]]:
    """Each usable prompt of a suite with its file:line; what is wrong with others goes to `faults`."""
    path = folder / f"{role}.jsonl"
    defaults = read_defaults(folder)
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; a suite folder holds steering, selection and audit.jsonl"
        ) from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            prompt = _prompt(line, where, defaults)
        except UsageError as fault:
            faults.append(str(fault))
            continue
        if prompt.id in seen:
            faults.append(f"{where}: the id {prompt.id!r} stands on line {seen[prompt.id]} already")
            continue
        seen[prompt.id] = number
        yield where, prompt
    if not seen and not faults:
        raise UsageError(f"{path}: no prompt in it")


def _prompt(line: bytes, where: str, defaults: SuiteDefaults) -> Prompt:
    try:
        value = strict_json(line.decode("utf-8"), max_bytes=MAX_BYTES, quote=True)
        return Prompt.model_validate(with_defaults(value, defaults))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 at byte {error.start}") from None
    except NotStrict as error:
        raise UsageError(f"{where}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "(line)"
        raise UsageError(f"{where}: {field}: {first['msg']}") from None


def check_disjoint(folder: Path, suites: Sequence[Suite]) -> None:
    """UsageError if a prompt of one role asks what one of another asks, or is of the same group.

    An audit with prompts that decisions were made on, or with variants of them, would not be an
    audit.
    """
    grouped: dict[tuple[str, str], tuple[str, str]] = {}
    asked: dict[tuple[str | None, ...], tuple[str, str]] = {}
    for suite in suites:
        for prompt in suite.prompts:
            question = (prompt.system, *prompt.turns)
            role, identifier = asked.setdefault(question, (suite.role, prompt.id))
            if role != suite.role:
                raise UsageError(
                    f"{folder / suite.role}.jsonl: the prompt {prompt.id!r} asks the same as "
                    f"{identifier!r} of {role}.jsonl; the three roles share no prompt: "
                    "take it out of one of them"
                )
            if prompt.group is None:
                continue
            key = (suite.objective, prompt.group)
            role, identifier = grouped.setdefault(key, (suite.role, prompt.id))
            if role != suite.role:
                raise UsageError(
                    f"{folder / suite.role}.jsonl: the prompt {prompt.id!r} is of the group "
                    f"{prompt.group!r}, as {identifier!r} of {role}.jsonl is; keep a group within one "
                    "role"
                )


def check_independent(path: Path, test: Suite, others: Sequence[Suite]) -> None:
    """UsageError if an independent suite in the file `path` asks what one of a run's suites asks."""
    asked: dict[tuple[str | None, ...], str] = {}
    for suite in others:
        for prompt in suite.prompts:
            asked[prompt.system, *prompt.turns] = f"{prompt.id!r} of {suite.objective} {suite.role}"
    shared = []
    for prompt in test.prompts:
        same = asked.get((prompt.system, *prompt.turns))
        if same is not None:
            shared.append(f"{prompt.id!r} asks the same as {same}")
    if shared:
        raise UsageError(
            f"{path}: {len(shared)} of {len(test.prompts)} prompts stand in suites of this run, so "
            f"that they test nothing independently; {shared[0]}; take them out of one of the two"
        )


def _check_labels(prompt: Prompt, objective: Objective, where: str) -> None:
    """UsageError unless the stored labels follow from the items, and rules and constraints are usable."""
    try:
        derived = labels_of(objective, prompt)
        check_rules(prompt)
        _check_constraints(prompt)
    except (Malformed, UsageError) as error:
        raise UsageError(f"{where}: {error}") from None
    stored = (prompt.slice, prompt.weight, prompt.valid)
    if stored != derived:
        raise UsageError(
            f"{where}: (slice, weight, valid) is {stored}, "
            f"but what the prompt holds gives {derived}"
        )


def _check_constraints(prompt: Prompt) -> None:
    """UsageError if a constraint gives parameters that its checker cannot use.

    A constraint that lacks some leaves its prompt unscored; that is not a mistake in the file.
    """
    for number, constraint in enumerate(prompt.constraints):
        reason = unusable(constraint)
        if reason:
            raise UsageError(f"constraints.{number}: {reason}")


def reference_response(prompt: Prompt, answers: list[str]) -> Response:
    """Reference answers as the response to their prompt."""
    reasons: list[Literal["stop", "length"]] = ["stop"] * len(answers)
    return Response(id=prompt.id, answers=answers, finish_reasons=reasons, n_tokens=0)
