"""What a config says of an objective: one model per kind, less what every objective has."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mosaic.core.types.base import FrozenModel

SPEC = re.compile(r"[^:\0]+:[A-Za-z_][A-Za-z0-9_]*")


class PublishedConfig(FrozenModel):
    """One of the published objectives; the key in the config says which."""

    kind: Literal["published"] = "published"


class RubricConfig(FrozenModel):
    """A rubric file: items, slices and levels in YAML (`docs/rubrics.md`)."""

    kind: Literal["rubric"] = "rubric"
    rubric: str = Field(min_length=1)


class Tolerance(FrozenModel):
    """How far a number may be from the known one: the larger of the two bounds counts.

    `relative` is a share of the known number's size.
    """

    absolute: float = Field(default=0, ge=0)
    relative: float = Field(default=0, ge=0)

    def allows(self, value: Fraction, known: Fraction) -> bool:
        """Whether a value is close enough to the known one.

        Both bounds are taken as the decimals that they were written as, so that 0.1 is a tenth.

        >>> Tolerance(relative=0.01).allows(Fraction(101), Fraction(100))
        True
        """
        absolute, relative = Fraction(repr(self.absolute)), Fraction(repr(self.relative))
        return abs(value - known) <= max(absolute, relative * abs(known))


class ReferenceConfig(FrozenModel):
    """How answers are compared with known ones. See the module.

    `strip` and `ignore_case` are for texts and patterns. Numbers are equal without a tolerance.
    `slice_from` names the attribute of a prompt that is its slice; without it all are one slice.
    """

    kind: Literal["reference"] = "reference"
    match: Literal["exact", "number", "choice", "regex", "json_schema"]
    tolerance: Tolerance = Tolerance()
    ignore_case: bool = False
    strip: bool = True
    full_match: bool = False
    parts: bool = False
    slice_from: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _no_idle_option(self) -> ReferenceConfig:
        if self.tolerance != Tolerance() and self.match != "number":
            raise ValueError(f"tolerance is for match: number, not for {self.match}")
        if self.full_match and self.match != "regex":
            raise ValueError(f"full_match is for match: regex, not for {self.match}")
        if self.ignore_case and self.match not in ("exact", "regex"):
            raise ValueError(f"ignore_case is for exact and regex, not for {self.match}")
        return self


class RetentionConfig(FrozenModel):
    """`slice_from` names the attribute of a prompt that is its slice; without it all are one."""

    kind: Literal["retention"] = "retention"
    slice_from: str | None = Field(default=None, min_length=1)


class PythonConfig(FrozenModel):
    """Which class to import: `module:Class` or `path/to/file.py:Class`."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    kind: Literal["python"] = "python"
    class_: str = Field(alias="class")

    @field_validator("class_")
    @classmethod
    def _module_and_class(cls, spec: str) -> str:
        if not SPEC.fullmatch(spec):
            raise ValueError(f"{spec!r} is not of the form module:Class or path/to/file.py:Class")
        return spec

    @property
    def class_name(self) -> str:
        return self.class_.rpartition(":")[2]

    def file(self, folder: Path) -> Path:
        """The file that `class` names: a path if it ends in .py or holds a slash, else a module.

        `../code/mine` is a path that lacks its end; the dots of `code.mine` stand between folders.
        """
        module = self.class_.rpartition(":")[0]
        relative = module
        if not module.endswith(".py"):
            relative = (module if "/" in module else module.replace(".", "/")) + ".py"
        return (folder / Path(relative).expanduser()).resolve()
