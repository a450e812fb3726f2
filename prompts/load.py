"""Prompt files: `prompts/NAME.md`, with `{{name}}` where a value goes.

Every placeholder needs a value and every value a placeholder. A value is put in once and is never
read as a template. The digest of a file says which words were used.
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
    """The text of one prompt file. `digest` is the SHA-256 of its bytes."""

    name: str
    text: str
    digest: str

    def fill(self, **values: str) -> str:
        """The text with every placeholder replaced.

        Raises UsageError if the names and the placeholders are not the same.

        >>> Prompt("greeting", "Hello {{name}}.", "").fill(name="{{name}}")
        'Hello {{name}}.'
        """
        wanted = set(PLACEHOLDER.findall(self.text))
        if wanted != set(values):
            wrong = ", ".join(sorted(wanted ^ set(values)))
            raise UsageError(f"prompts/{self.name}.md: placeholders and values differ in {wrong}")
        return PLACEHOLDER.sub(lambda match: values[match.group(1)], self.text)


def load(name: str) -> Prompt:
    """The prompt file of that name. Raises UsageError if there is none."""
    file = files("prompts") / f"{name}.md"
    if not re.fullmatch(r"[a-z_]+", name) or not file.is_file():
        raise UsageError(f"prompts/{name}.md: no such prompt file")
    data = file.read_bytes()
    return Prompt(name, data.decode(), hashlib.sha256(data).hexdigest())
