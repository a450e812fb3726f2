"""`--where field=value`: only rows whose field has one of the values; the others are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mosaic.core.errors import UsageError

MISSING = object()


def conditions(options: Sequence[str]) -> dict[str, list[str]]:
    """Field -> the values wanted. Raises UsageError for what is not field=value.

    >>> conditions(["label=safe", "lang=en", "lang=de"])
    {'label': ['safe'], 'lang': ['en', 'de']}
    """
    wanted: dict[str, list[str]] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError(f"--where {option!r}: write it as field=value, such as label=safe")
        wanted.setdefault(name, []).append(value)
    return wanted


def field_of(row: Mapping[str, object], name: str) -> object:
    """A field by its name, or by a path of names with dots. MISSING if the row has none."""
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def unmet(row: Mapping[str, object], wanted: Mapping[str, Sequence[str]]) -> str | None:
    """The first field whose value is none of those wanted, or None if the row meets all."""
    for name, values in wanted.items():
        value = field_of(row, name)
        each = value if isinstance(value, list) else [value]
        if not any(as_written(one) in values for one in each):
            return name
    return None


def as_written(value: object) -> str | None:
    """A value as it is typed on the command line.

    >>> as_written(True), as_written(3.0), as_written("a"), as_written(None)
    ('true', '3', 'a', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int | float) else None
