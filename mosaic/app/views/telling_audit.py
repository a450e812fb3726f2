"""How the end of a run is told: what the audit suites and independent ones said of which model."""

from __future__ import annotations

from mosaic.app.views.story import Bar, Bars, Part
from mosaic.core.types.evaluation import Score
from mosaic.core.types.events import AuditedEvent


def audited(record: AuditedEvent) -> tuple[str, list[Part]]:
    """The title of an audit, and its scores; those of independent suites stand apart."""
    chosen = "no round was chosen" if record.chosen is None else f"round {record.chosen} chosen"
    bars = []
    for name, score in record.base.items():
        bars += _bars(name, {"base": score, "chosen": record.scores.get(name)})
    parts: list[Part] = [Bars(title="audit mean", bars=bars)]
    tested = []
    for name, test in record.independent.items():
        models = {"base": test.base, "static": test.static, "chosen": test.chosen}
        tested += _bars(f"{name} ({test.objective})", models)
    if tested:
        parts.append(Bars(title="mean on independent suites, which no decision read", bars=tested))
    return f"audited: {chosen} ({record.stop})", parts


def _bars(suite: str, models: dict[str, Score | None]) -> list[Bar]:
    """A bar per model that was measured."""
    return [
        Bar(label=f"{suite}, {model}", mean=score.mean, low=score.low, high=score.high)
        for model, score in models.items()
        if score is not None
    ]
