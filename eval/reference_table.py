"""How the known answers of a suite were judged: by item, and every one that came out wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_LISTED = 20


@dataclass
class ReferenceTable:
    """Known answers by kind, how often each item held in them, and the misses.

    `held` counts by (kind, item); `examples` names the first prompt of each.
    """

    answers: Counter[str] = field(default_factory=Counter)
    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)

    def add(self, kind: str, prompt: str, items: Mapping[str, object], miss: str | None) -> None:
        """Count one judged answer; `miss` says what is wrong with its score."""
        self.answers[kind] += 1
        for item in _holding(items):
            self.held[kind, item] += 1
            self.examples.setdefault((kind, item), prompt)
        if miss:
            self.misses.append(miss)

    def lines(self) -> list[str]:
        """The table, a line an item: how often it held in good and in bad answers, and where."""
        items = sorted({item for _, item in self.held})
        shown = []
        for item in items:
            parts = []
            for kind in ("good", "bad"):
                count = self.held[kind, item]
                example = f", as {self.examples[kind, item]}" if count else ""
                parts.append(f"{count:,} of {self.answers[kind]:,} {kind}{example}")
            shown.append(f"  {item}: {'; '.join(parts)}")
        return shown

    def complaint(self, where: str) -> str:
        """The misses and the table as one message."""
        total = self.answers.total()
        listed = [f"  {miss}" for miss in self.misses[:MAX_LISTED]]
        if len(self.misses) > MAX_LISTED:
            listed.append(f"  ... and {len(self.misses) - MAX_LISTED:,} more")
        lines = [f"{where}: {len(self.misses):,} of {total:,} known answers come out wrong:"]
        lines += [*listed, "items that held:", *self.lines()]
        return "\n".join([*lines, "mend the rules or the reference (docs/rules.md)"])


def _holding(items: Mapping[str, object], path: str = "") -> Sequence[str]:
    """The names of all items of a judgment that hold: `refusal.explicit_refusal`."""
    found: list[str] = []
    for name, value in items.items():
        if isinstance(value, Mapping):
            found += _holding(value, f"{path}{name}.")
        elif path and isinstance(value, int) and value:
            found.append(f"{path}{name}".removeprefix("items."))
    return found
