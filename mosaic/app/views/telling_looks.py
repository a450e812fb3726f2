"""Cheap looks, told: which mixtures were tried for less, and what they scored."""

from __future__ import annotations

from mosaic.app.views.parts import count
from mosaic.app.views.story import Table
from mosaic.core.types.events import LookedEvent


def looked(record: LookedEvent) -> tuple[str, list[str], Table]:
    """A title, facts, and a row for each look: its shares of data sets, and its steering means."""
    names = list(record.looks[0].means) if record.looks else []
    datasets = list(record.looks[0].ratios) if record.looks else []
    rows = []
    for look in record.looks:
        row = [f"{look.trained:,}"]
        row += [f"{100 * look.ratios.get(dataset, 0.0):.1f} %" for dataset in datasets]
        row += [_shown(look.means.get(name)) for name in names]
        rows.append(row)
    table = Table(
        title="looks: tokens trained, shares of data sets, steering means",
        header=["tokens", *datasets, *names],
        rows=rows,
        folded=False,
    )
    facts = [record.note] if record.note else []
    return f"looked at {count(len(record.looks), 'mixture')}", facts, table


def _shown(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.2f}"
