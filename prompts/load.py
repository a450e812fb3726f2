"""Prompt files: `prompts/NAME.md`, with `{{name}}` where a value goes, and a digest that says which words were used.

Every placeholder needs a value and every value a placeholder. A value is put in once and never read as a template.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

from mosaic.core.errors import UsageError

PLACEHOLDER = re.compile(r"\{\{([a-z_]+)\}\}")


@dataclass(frozen=True)
class Prompt:
    """The words of one file. `digest` is the SHA-256 of its bytes."""

    name: str
    text: str
    digest: str

    def fill(self, **values: str) -> str:
        """The text with every placeholder replaced. UsageError where names and placeholders differ."""
        wanted = set(PLACEHOLDER.findall(self.text))
        if wanted != set(values):
            wrong = ", ".join(sorted(wanted ^ set(values)))
            raise UsageError(f"prompts/{self.name}.md: placeholders and values differ in {wrong}")
        return PLACEHOLDER.sub(lambda match: values[match.group(1)], self.text)


def load(name: str) -> Prompt:
    """The prompt file of that name. UsageError where there is none."""
    file = files("prompts") / f"{name}.md"
    if not re.fullmatch(r"[a-z_]+", name) or not file.is_file():
        raise UsageError(f"prompts/{name}.md: no such prompt file")
    data = file.read_bytes()
    return Prompt(name, data.decode(), hashlib.sha256(data).hexdigest())
