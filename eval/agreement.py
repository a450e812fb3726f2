"""How far two judges agree: Cohen's kappa per item, and prevalence, since kappa misleads on rare values.

Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20
(1960).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypedDict

from mosaic.core.types.evaluation import Judgment


class ItemAgreement(TypedDict):
    """Two judges on one item, over `n` conversations.

    `agreement` is the share of equal values. `prevalence` is the share of conversations in which
    the item holds, according to each judge.
    """

    item: str
    n: int
    agreement: float
    kappa: float | None
    prevalence: list[float]


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters over the same cases: (observed - chance) / (1 - chance).

    `observed` is the share of equal values. `chance` is the share that raters with these
    prevalences would reach by chance. None for no case, and if both gave one and the same value
    throughout: chance agreement is certain then, and kappa is undefined. ValueError for unequal
    lengths.

    Of four cases, both say yes to one and no to two, and the second alone says yes to the last:
    observed is 3/4, chance is 1/4 * 2/4 + 3/4 * 2/4 = 1/2, and kappa is (3/4 - 1/2) / (1 - 1/2).

    >>> kappa([1, 0, 0, 0], [1, 0, 0, 1])
    0.5
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        return None
    count = len(pairs)
    observed = sum(a == b for a, b in pairs) / count
    chance = sum((first.count(v) / count) * (second.count(v) / count) for v in {*first, *second})
    return None if chance == 1 else (observed - chance) / (1 - chance)


def compare(first: Sequence[Judgment], second: Sequence[Judgment]) -> list[ItemAgreement]:
    """A row per item, over the conversations that both judged.

    Items that a judge was not asked about have no row.
    """
    values: dict[str, tuple[list[int], list[int]]] = {}
    for a, b in zip(first, second, strict=True):
        if a.status != "ok" or b.status != "ok":
            continue
        left, right = dict(_items(a.items)), dict(_items(b.items))
        for name in left.keys() & right.keys():
            both = values.setdefault(name, ([], []))
            both[0].append(left[name])
            both[1].append(right[name])
    return [_row(name, a, b) for name, (a, b) in sorted(values.items())]


def _row(name: str, first: Sequence[int], second: Sequence[int]) -> ItemAgreement:
    equal = sum(a == b for a, b in zip(first, second, strict=True))
    coefficient = kappa(first, second)
    return {
        "item": name,
        "n": len(first),
        "agreement": round(equal / len(first), 4),
        "kappa": None if coefficient is None else round(coefficient, 4),
        "prevalence": [_prevalence(first), _prevalence(second)],
    }


def _prevalence(values: Sequence[int]) -> float:
    return round(sum(map(bool, values)) / len(values), 4)


def _items(line: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterator[tuple[str, int]]:
    """(channel.item, value) of a stored line."""
    for channel, items in (line.get("items") or {}).items():
        for item, value in items.items():
            yield f"{channel}.{item}", int(value)
