"""Writes the reference pages when the site is built: config, command line and JSON, from the code.

A hook of MkDocs. Nothing of it is part of the product.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import typer.main
from mkdocs.structure.files import File, Files

from mosaic.app.cli.main import app
from mosaic.app.schemas import schema_names, schema_of

ABOUT_JSON = """\
Every command that takes `--json` prints the shape named here; `python -m mosaic schema NAME` prints
its JSON Schema. Fields that are null or empty are there, unless a sentence says otherwise.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/config.md": config_page(),
        "reference/command-line.md": command_page(),
        "reference/json.md": json_page(),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


# -- config and JSON -------------------------------------------------------------------------------


def config_page() -> str:
    lines = [
        "# Config",
        "",
        "A config is YAML or JSON. Paths in it count from the file's folder; `--set a.b=value` changes "
        "one value. Unknown keys are refused. `python -m mosaic init` writes a commented one.",
        "",
        *tables("config", "RunConfig", set()),
    ]
    return "\n".join(lines)


# Classes that stand on their page under another name.
ANCHORS: dict[str, str] = {}


def json_page() -> str:
    shown: set[str] = {"RunConfig"}
    for name in schema_names():
        ANCHORS[str(schema_of(name).get("title", name))] = name
    lines = ["# JSON", "", ABOUT_JSON]
    for name in schema_names():
        if name != "config":
            lines += tables(name, name, shown)
    return "\n".join(lines)


def tables(name: str, title: str, shown: set[str]) -> list[str]:
    """A table of fields for a shape, and one for each class in it that was not shown before."""
    schema = schema_of(name)
    named = str(schema.get("title", title))
    lines = [f"## `{name}`", ""]
    if schema.get("type") == "array":
        lines += [f"A list of {kind(schema['items'])}.", ""]
    elif schema.get("properties"):
        lines += fields(schema)
    if named not in shown:
        shown.add(named)
    for inner, body in sorted(schema.get("$defs", {}).items()):
        if inner not in shown and body.get("properties"):
            shown.add(inner)
            lines += [f"### {inner} {{ #{inner.lower()} }}", "", *fields(body)]
    return lines


def fields(body: dict[str, Any]) -> list[str]:
    """What a class is, and a row per field."""
    lines = []
    if body.get("description"):
        lines += [about(body["description"]), ""]
    lines += ["| field | meaning | type | default |", "| --- | --- | --- | --- |"]
    required = body.get("required", [])
    for field, entry in body["properties"].items():
        default = "required" if field in required else ""
        if "default" in entry and field not in required:
            default = f"`{json.dumps(entry['default'])}`"
        if len(default) > 60:
            default = "see there"
        meaning = cell(entry.get("description", ""))
        lines.append(f"| `{field}` | {meaning} | {cell(kind(entry))} | {cell(default)} |")
    return [*lines, ""]


def about(text: str) -> str:
    """A docstring as Markdown, without its worked example."""
    return text.partition(">>>")[0].strip().replace("<", "&lt;")


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def kind(entry: dict[str, Any]) -> str:
    """The type of a field in words; a class links to its table.

    >>> kind({"type": "array", "items": {"type": "integer"}})
    'list of integer'
    """
    if "$ref" in entry:
        name = entry["$ref"].removeprefix("#/$defs/")
        return (
            f"[{name}](#{ANCHORS.get(name, name.lower())})" if name != "JsonValue" else "any JSON"
        )
    if "const" in entry:
        return f"`{json.dumps(entry['const'])}`"
    if "enum" in entry:
        return ", ".join(f"`{json.dumps(value)}`" for value in entry["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in entry:
            return " or ".join(dict.fromkeys(kind(one) for one in entry[several]))
    if entry.get("type") == "array":
        return f"list of {kind(entry.get('items', {}))}"
    if entry.get("type") == "object":
        values = entry.get("additionalProperties")
        return f"name -> {kind(values)}" if isinstance(values, dict) else "object"
    return str(entry.get("type", "any JSON"))


# -- command line ----------------------------------------------------------------------------------


def command_page() -> str:
    group = typer.main.get_command(app)
    lines = ["# Command line", "", (group.help or "").strip(), ""]
    lines += [
        "Results go to stdout, progress to stderr. RUN is a path, a name under `runs/`, or `last`.",
        "What exit codes mean is told in [troubleshooting](../troubleshooting.md).",
        "",
    ]
    for name, command in commands(group):
        lines += [f"## `{name}`", "", (command.help or "").strip(), ""]
        lines += [f"    {usage(name, command)}", ""]
        rows = [row for row in map(option, command.params) if row]
        if rows:
            lines += ["| argument or option | meaning |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def usage(name: str, command: Any) -> str:
    """How a command is called: its arguments, those in brackets may be left out."""
    words = [f"python -m mosaic {name}"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            word = parameter.name.upper() + (" ..." if parameter.nargs == -1 else "")
            words.append(word if parameter.required else f"[{word}]")
    return " ".join([*words, "[OPTIONS]"])


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of the application with its whole name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def option(parameter: Any) -> str:
    """A row for an argument or option; nothing for `--help`."""
    if "--help" in parameter.opts:
        return ""
    names = ", ".join(parameter.opts)
    if parameter.param_type_name == "argument":
        names = parameter.name.upper()
    return f"| `{names}` | {cell(getattr(parameter, 'help', None) or '')} |"
