"""The file shapes that people and scripts exchange with MOSAIC.

Reads them strictly, and gives their JSON Schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from eval.chat.strict_json import NotStrict, strict_json
from eval.objectives.base import Objective
from mosaic.app.config import RunConfig
from mosaic.app.config_file import explain
from mosaic.app.notices import Notice
from mosaic.app.score_lines import line_model
from mosaic.app.shapes import Report, Status
from mosaic.app.views.compare import RunComparison
from mosaic.app.views.diff import Difference
from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject
from mosaic.core.types.data import CurationReport, Example
from mosaic.core.types.evaluation import FailureProfile, Prompt, Scored
from mosaic.core.types.plans import ActionPlan, ApprovalRequest, Decision
from mosaic.core.types.runs import Observation

MAX_BYTES = 256 * 1024
# The fields of a `Scored` that `score` prints.
PRINTED = ("id", "status", "reason", "valid", "slice", "weight", "label", "score", "need")

SCHEMAS: dict[str, type[BaseModel]] = {
    "config": RunConfig,
    "plan": ActionPlan,
    "pool-row": Example,
    "prompt": Prompt,
    "scored": Scored,
    "curation": CurationReport,
    "observation": Observation,
    "report": Report,
    "status": Status,
    "compare": RunComparison,
    "diff": Difference,
    "profile": FailureProfile,
    "notice": Notice,
    "request": ApprovalRequest,
    "decision": Decision,
}
SCORE = "score-"
TRACE = "trace"


def schema_names() -> list[str]:
    return [*SCHEMAS, TRACE, *_line_names()]


def schema_of(name: str) -> JsonObject:
    """JSON Schema of a file shape. Raises UsageError with the names there are."""
    from mosaic.app.views.trace import trace_schema
    from mosaic.app.wiring import published_objective

    lines = _line_names()
    if name in lines:
        return line_model(published_objective(lines[name])).model_json_schema()
    if name == TRACE:
        return trace_schema()
    if name not in SCHEMAS:
        raise UsageError(f"no schema {name!r}; there are {', '.join(schema_names())}")
    return SCHEMAS[name].model_json_schema()


def _line_names() -> dict[str, str]:
    """Shapes of the lines that `score` reads, with the objective that each is of."""
    from mosaic.app.wiring import OBJECTIVES

    return {SCORE + objective.replace("_", "-"): objective for objective in OBJECTIVES}


def read_json(text: str, where: str, *, constants: bool = False) -> JsonValue:
    """JSON that a person or a script wrote. With `constants`, NaN and Infinity are let through.

    Raises UsageError naming `where` for what `eval.chat.strict_json` refuses.
    """
    try:
        found: JsonValue = strict_json(text, MAX_BYTES, quote=True, constants=constants)
    except NotStrict as error:
        raise UsageError(f"{where}: {error}") from None
    return found


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises UsageError if it is missing or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def read_plan(path: Path) -> ActionPlan:
    """A plan file, every field checked; unknown names are left to the pool's own check."""
    return parse_plan(read_text(path), str(path))


def parse_plan(text: str, where: str) -> ActionPlan:
    """A plan from JSON text, strictly. Raises UsageError naming `where` and each bad field."""
    try:
        return ActionPlan.model_validate(read_json(text, where), strict=True)
    except ValidationError as error:
        raise UsageError(f"{where}:\n" + explain(error, "plan")) from None


def score_lines(rules: Objective, path: Path) -> Iterator[JsonObject]:
    """Scores of stored L3 items, line by line.

    A broken line is a UsageError with file:line; a malformed item is `unscored`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        data = read_json(line, f"{path}:{number}", constants=True)
        if not isinstance(data, dict) or not isinstance(data.get("id"), str):
            raise UsageError(f"{path}:{number}: a line is an object with an `id` text")
        yield _printed(rules.score(data))


def _printed(scored: Scored) -> JsonObject:
    """What `score` prints of a conversation; the reason only if there is one."""
    data = scored.json_data()
    shown = {name: data[name] for name in PRINTED}
    if shown["reason"] is None:
        del shown["reason"]
    return shown
