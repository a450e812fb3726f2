"""`suite.yaml` beside a suite's files: what all its prompts share, written once.

    objective: safety
    slice_from: type
    system: You are a careful assistant.
    rules:
      refusal:
        explicit_refusal: {any: ["i can ?not", "i won't"]}

A prompt's own fields go before it: of `rules` each item, of `attributes` each name. What comes of
both is the prompt, and so the suite's digest changes with this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Discriminator, Field, ValidationError

from eval.objectives.config import ReferenceConfig, RetentionConfig, RubricConfig
from eval.slices import SLICE_FROM
from mosaic.core.errors import UsageError
from mosaic.core.types.base import Attribute, FrozenModel

DEFAULTS = "suite.yaml"
MISNAMED = ("suite.yml", "suite.json")
BOOLEAN = "tag:yaml.org,2002:bool"

# An objective that a suite brings along. Code is named by a config alone, never by a data folder.
OwnObjective = Annotated[RubricConfig | ReferenceConfig | RetentionConfig, Discriminator("kind")]


class SuiteDefaults(FrozenModel):
    """The fields of `suite.yaml`; all may be left out.

    `objective` says what the suite measures: the name of an objective, or one described here by its
    kind. `slice_from` names the attribute whose value is a prompt's slice (`eval.slices`).
    """

    objective: Annotated[str, Field(min_length=1)] | OwnObjective | None = None
    rules: dict[str, dict[str, Any]] = {}
    system: str | None = None
    attributes: dict[str, Attribute] = {}
    slice_from: str | None = None


class _Loader(yaml.SafeLoader):
    """The safe loader, in which `no`, `yes`, `on` and `off` are words: rules look for them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; one that names a key twice is refused."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key is a single word", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _words(resolvers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(tag, pattern) for tag, pattern in resolvers if tag != BOOLEAN]


_Loader.yaml_implicit_resolvers = {
    first: _words(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(BOOLEAN, re.compile("(?:true|false)$"), list("tf"))


def read_defaults(folder: Path) -> SuiteDefaults:
    """The defaults of a suite's folder; empty ones if it has no such file.

    Raises UsageError naming file and field.
    """
    path = folder / DEFAULTS
    for other in MISNAMED:
        if (folder / other).is_file():
            raise UsageError(f"{folder / other}: is not read; call it {DEFAULTS}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return SuiteDefaults()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    try:
        return SuiteDefaults.model_validate(yaml.load(text, _Loader) or {})
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "(file)"
        fields = ", ".join(SuiteDefaults.model_fields)
        raise UsageError(f"{path}: {field}: {first['msg']}; the fields are {fields}") from None


def with_defaults(prompt: object, defaults: SuiteDefaults) -> object:
    """A prompt as it stands in a file, completed. One of another shape is left for its own check."""
    if not isinstance(prompt, dict):
        return prompt
    if not _is_rules(prompt.get("rules")) or not isinstance(prompt.get("attributes") or {}, dict):
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


def _is_rules(rules: object) -> bool:
    """Whether a prompt's rules are channels of items, or nothing."""
    if rules is None:
        return True
    return isinstance(rules, dict) and all(isinstance(items, dict) for items in rules.values())


def _joined_rules(
    shared: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The rules of both, a prompt's own item before the shared one of the same name."""
    joined: dict[str, dict[str, Any]] = {}
    for channel in [*shared, *own]:
        joined[channel] = {**shared.get(channel, {}), **own.get(channel, {})}
    return joined
