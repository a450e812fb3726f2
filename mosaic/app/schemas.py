"""JSON Schemas of what people and scripts exchange with MOSAIC, every field described.

A field's words stand in `descriptions.yaml`, by class and field. What the class itself says of a
field comes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from mosaic.app.comments import Comment
from mosaic.app.config import RunConfig
from mosaic.app.json_shapes import (
    Compared,
    Contaminated,
    Imported,
    KnownAnswers,
    PoolStats,
    Proposed,
    Shown,
)
from mosaic.app.notices import Notice
from mosaic.app.score_lines import line_model
from mosaic.app.shapes import Finding, Report, Status
from mosaic.app.stopping import StopOrder
from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject
from mosaic.core.types.data import CurationReport, Example
from mosaic.core.types.evaluation import FailureProfile, Prompt, Scored
from mosaic.core.types.plans import ActionPlan, ApprovalRequest, Decision
from mosaic.core.types.runs import Observation

DESCRIPTIONS = Path(__file__).parent / "descriptions.yaml"
EVERYWHERE = "any"
SCORE = "score-"
TRACE = "trace"

# Files that people write, and what commands print that need nothing but themselves.
SHAPES: dict[str, Any] = {
    "config": RunConfig,
    "plan": ActionPlan,
    "pool-row": Example,
    "prompt": Prompt,
    "scored": Scored,
    "curation": CurationReport,
    "observation": Observation,
    "report": Report,
    "status": Status,
    "request": ApprovalRequest,
    "decision": Decision,
    "profile": FailureProfile,
    "notice": Notice,
    "stop": StopOrder,
    "comment": Comment,
    "validate": list[Finding],
    "proposed": Proposed,
    "import": Imported,
    "contamination": list[Contaminated],
    "judge-check": list[KnownAnswers],
    "judge-compare": Compared,
    "pool-stats": PoolStats,
    "pool-show": list[Shown],
}
# Shapes of commands whose modules are imported when they are asked for.
LATER = ("compare", "diff", "why", "replay", "verify", "doctor")


def schema_names() -> list[str]:
    """The names of all shapes."""
    return [*SHAPES, *LATER, TRACE, *_line_names()]


def schema_of(name: str) -> JsonObject:
    """JSON Schema of a shape. Raises UsageError with the names there are."""
    return described(_schema(name))


def _schema(name: str) -> JsonObject:
    from mosaic.app.objectives import published_objective
    from mosaic.app.views.trace import trace_schema

    lines = _line_names()
    if name in lines:
        return line_model(published_objective(lines[name])).model_json_schema()
    if name == TRACE:
        return trace_schema()
    if name in LATER:
        return TypeAdapter(_later(name)).json_schema()
    if name not in SHAPES:
        raise UsageError(f"no schema {name!r}; there are {', '.join(schema_names())}")
    return TypeAdapter(SHAPES[name]).json_schema()


def _later(name: str) -> Any:
    from mosaic.app.doctor import Examined
    from mosaic.app.replay import Replayed
    from mosaic.app.verify import Damage
    from mosaic.app.views.compare import RunComparison
    from mosaic.app.views.diff import Difference
    from mosaic.app.views.provenance import RowReasons

    shapes: dict[str, Any] = {
        "compare": RunComparison,
        "diff": Difference,
        "why": RowReasons,
        "replay": list[Replayed],
        "verify": list[Damage],
        "doctor": list[Examined],
    }
    return shapes[name]


def _line_names() -> dict[str, str]:
    """Shapes of the lines that `score` reads, with the objective that each is of."""
    from mosaic.app.objectives import OBJECTIVES

    return {SCORE + objective.replace("_", "-"): objective for objective in OBJECTIVES}


def described(schema: JsonObject) -> JsonObject:
    """The schema with a description for every field that has none of its own."""
    words = yaml.safe_load(DESCRIPTIONS.read_text(encoding="utf-8"))
    for body in [schema, *_definitions(schema).values()]:
        own = words.get(str(body.get("title")), {})
        for field, entry in _properties(body).items():
            known = own.get(field) or words[EVERYWHERE].get(field)
            if known and "description" not in entry:
                entry["description"] = known
    return schema


def undescribed(schema: JsonObject) -> list[str]:
    """The fields of a schema without a description, as `Class.field`."""
    found = []
    for name, body in {"": schema, **_definitions(schema)}.items():
        for field, entry in _properties(body).items():
            if "description" not in entry:
                found.append(f"{body.get('title', name)}.{field}")
    return found


def _definitions(schema: JsonObject) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = schema.get("$defs", {})  # type: ignore[assignment]
    return found


def _properties(body: JsonObject) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = body.get("properties", {})  # type: ignore[assignment]
    return found
