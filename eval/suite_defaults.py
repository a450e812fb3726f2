"""`suite.yaml` beside a suite's files: what all its prompts share, written once.

    slice_from: type
    system: You are a careful assistant.
    rules:
      refusal:
        explicit_refusal: {any: ["i can ?not", "i won't"]}

A prompt's own fields go before it: of `rules` each item, of `attributes` each name. What comes of
both is the prompt, and so the suite's digest changes with this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eval.slices import SLICE_FROM
from mosaic.core.errors import UsageError
from mosaic.core.types.base import Attribute, FrozenModel

DEFAULTS = "suite.yaml"


class SuiteDefaults(FrozenModel):
    """The fields of `suite.yaml`; all may be left out.

    `slice_from` names the attribute whose value is a prompt's slice (`eval.slices`).
    """

    rules: dict[str, dict[str, Any]] = {}
    system: str | None = None
    attributes: dict[str, Attribute] = {}
    slice_from: str | None = None


def read_defaults(folder: Path) -> SuiteDefaults:
    """The defaults of a suite's folder; empty ones if it has no such file.

    Raises UsageError naming file and field.
    """
    path = folder / DEFAULTS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return SuiteDefaults()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    try:
        return SuiteDefaults.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "(file)"
        fields = ", ".join(SuiteDefaults.model_fields)
        raise UsageError(f"{path}: {field}: {first['msg']}; the fields are {fields}") from None


def with_defaults(prompt: object, defaults: SuiteDefaults) -> object:
    """A prompt as it stands in a file, completed."""
    if not isinstance(prompt, dict):
        return prompt
    completed = dict(prompt)
    if defaults.system is not None and prompt.get("system") is None:
        completed["system"] = defaults.system
    if defaults.rules:
        completed["rules"] = _joined_rules(defaults.rules, prompt.get("rules") or {})
    attributes = dict(defaults.attributes)
    if defaults.slice_from:
        attributes[SLICE_FROM] = defaults.slice_from
    if attributes:
        completed["attributes"] = {**attributes, **(prompt.get("attributes") or {})}
    return completed


def _joined_rules(
    shared: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The rules of both, a prompt's own item before the shared one of the same name."""
    joined: dict[str, dict[str, Any]] = {}
    for channel in [*shared, *own]:
        joined[channel] = {**shared.get(channel, {}), **own.get(channel, {})}
    return joined
