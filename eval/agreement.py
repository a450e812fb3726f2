"""How far two judges agree: Cohen's kappa per item, with prevalence, since kappa alone misleads where one value is rare.

Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20 (1960).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from mosaic.core.types.evaluation import Judgment


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters over the same cases; None for no case, or where both gave one and the same value
    throughout (chance agreement is certain, and kappa undefined). ValueError for unequal lengths."""
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        return None
    count = len(pairs)
    observed = sum(a == b for a, b in pairs) / count
    chance = sum((first.count(v) / count) * (second.count(v) / count) for v in {*first, *second})
    return None if chance == 1 else (observed - chance) / (1 - chance)


def compare(first: Sequence[Judgment], second: Sequence[Judgment]) -> list[dict[str, Any]]:
    """A row per item over the conversations that both judged: n, share of agreement, kappa, and each judge's
    prevalence (mean share of cases in which the item holds). Items that neither was asked about have no row."""
    values: dict[str, tuple[list[int], list[int]]] = {}
    for a, b in zip(first, second, strict=True):
        if a.status != "ok" or b.status != "ok":
            continue
        left, right = dict(_items(a.items)), dict(_items(b.items))
        for name in left.keys() & right.keys():
            both = values.setdefault(name, ([], []))
            both[0].append(left[name])
            both[1].append(right[name])
    return [
        {
            "item": name,
            "n": len(a),
            "agreement": round(sum(x == y for x, y in zip(a, b, strict=True)) / len(a), 4),
            "kappa": None if (k := kappa(a, b)) is None else round(k, 4),
            "prevalence": [
                round(sum(map(bool, a)) / len(a), 4),
                round(sum(map(bool, b)) / len(b), 4),
            ],
        }
        for name, (a, b) in sorted(values.items())
    ]


def _items(line: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(channel.item, value) of a stored line."""
    for channel, items in (line.get("items") or {}).items():
        for item, value in items.items():
            yield f"{channel}.{item}", int(value)
