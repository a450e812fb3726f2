"""Config -> objectives. Knows every kind of them, as `mosaic.app.wiring` knows all else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from eval.objectives.base import Objective
from eval.objectives.config import ReferenceConfig, RubricConfig
from eval.objectives.custom import describe, open_python
from eval.objectives.instruction_following import InstructionFollowing
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.reference import ReferenceObjective
from eval.objectives.retention import RetentionObjective
from eval.objectives.rubric import open_rubric
from eval.objectives.safety import Safety
from eval.suite import IndependentSuite, load_independent
from eval.suite_defaults import DEFAULTS, OwnObjective, read_defaults
from mosaic.app.config import (
    ObjectiveConfig,
    PythonObjectiveConfig,
    ReferenceObjectiveConfig,
    RetentionObjectiveConfig,
    RubricObjectiveConfig,
    RunConfig,
)
from mosaic.core.errors import UsageError

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "safety": Safety,
    "over_refusal": OverRefusal,
    "instruction_following": InstructionFollowing,
}


def published_objective(name: str) -> Objective:
    """A published objective by its name. Raises UsageError with the names there are."""
    if name not in OBJECTIVES:
        raise UsageError(
            f"objectives.{name}: no such objective; there are {', '.join(OBJECTIVES)}, and kinds of "
            "your own (rubric, reference, retention, python)"
        )
    return OBJECTIVES[name]()


def open_objective(
    name: str, settings: ObjectiveConfig, notify: Callable[[str], None] = lambda text: None
) -> Objective:
    """An objective of a config. What code of its own it brings is said before it is imported.

    Raises UsageError if the objective is unknown, or its file is missing or broken.
    """
    if isinstance(settings, RubricObjectiveConfig):
        return open_rubric(name, Path(settings.rubric))
    if isinstance(settings, ReferenceObjectiveConfig):
        return ReferenceObjective(name, settings)
    if isinstance(settings, RetentionObjectiveConfig):
        return RetentionObjective(name, settings)
    if isinstance(settings, PythonObjectiveConfig):
        here = Path.cwd()
        code = describe(settings, here)
        notify(
            f"objectives.{name}: runs the code in {code.file} ({settings.class_name}, SHA-256 "
            f"{code.digest})"
        )
        return open_python(name, settings, here, code.digest)
    return published_objective(name)


def find_objective(
    name: str, config: RunConfig | None, notify: Callable[[str], None] = lambda text: None
) -> Objective:
    """The objective that a command names: one of the config if it is given, or a published one."""
    if config is None or name not in config.objectives:
        return published_objective(name)
    return open_objective(name, config.objectives[name], notify)


def open_independent(
    name: str, folder: Path, objectives: Mapping[str, Objective]
) -> IndependentSuite:
    """The independent suite `name`, judged by the objective that its `suite.yaml` names.

    That is one of `objectives`, those of the config, or a published one, or one that the file
    describes by its kind. Raises UsageError if the suite or its objective is missing or broken.
    """
    if not folder.is_dir():
        raise UsageError(f"audit_also.{name}: {folder}: no such folder")
    measured = read_defaults(folder).objective
    if measured is None:
        raise UsageError(
            f"audit_also.{name}: {folder / DEFAULTS} says nothing of what judges this suite; write "
            f"`objective: NAME` into it, with one of {', '.join({**objectives, **OBJECTIVES})}, or "
            "describe an objective by its kind"
        )
    if not isinstance(measured, str):
        return load_independent(folder, name, _own_objective(name, folder, measured))
    if measured in objectives:
        return load_independent(folder, name, objectives[measured])
    if measured in OBJECTIVES:
        return load_independent(folder, name, OBJECTIVES[measured]())
    raise UsageError(
        f"audit_also.{name}: {folder / DEFAULTS}: objective: {measured!r} is none of "
        f"{', '.join({**objectives, **OBJECTIVES})}"
    )


def _own_objective(name: str, folder: Path, settings: OwnObjective) -> Objective:
    """The objective that a suite brings along, under the suite's name."""
    if name in OBJECTIVES:
        raise UsageError(
            f"audit_also.{name}: {folder / DEFAULTS} describes an objective of its own, which cannot "
            "have the name of a published one; give the suite another name"
        )
    if isinstance(settings, RubricConfig):
        return open_rubric(name, folder / settings.rubric)
    if isinstance(settings, ReferenceConfig):
        return ReferenceObjective(name, settings)
    return RetentionObjective(name, settings)
