"""The pictures of a run, by matplotlib, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from mosaic.core.types.runs import Round

COLOURS = ("#2f6db3", "#c2581e", "#3b8a54", "#8356a8", "#a58a17")


def svg(kind: str, data: dict[str, Any], dark: bool = False) -> str:
    """One of `KINDS` drawn from `report_data`, for a light or a dark background."""
    return _svg(lambda axes: KINDS[kind](axes, data), dark=dark)


def heat(rounds: list[Round]) -> str:
    """Steering means of every slice in every round; empty where nothing was measured."""
    keys = sorted({(s.objective, s.slice) for r in rounds for s in r.profile.slices})
    return (
        _svg(lambda axes: _heat(axes, rounds, keys), height=1.2 + 0.27 * len(keys)) if keys else ""
    )


def _svg(draw: Callable[[Any], None], height: float = 3.4, dark: bool = False) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = "#c9d1d9" if dark else "#1d232b"
    colours = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink
    )
    fonts = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.hashsalt": "mosaic",
    }
    with rc_context({**fonts, **colours}):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _name(number: int) -> str:
    return "base" if number == 0 else str(number)


def _scores(axes: Any, data: dict[str, Any]) -> None:
    colours = dict(zip(data["objectives"], COLOURS * 9, strict=False))
    rounds = data["rounds"]
    for index, objective in enumerate(data["objectives"]):
        known = [
            (r["round"], s)
            for r in rounds
            if (s := r["scores"][objective]["selection"])["mean"] is not None
        ]
        x = [n + (index - 1) * 0.06 for n, _ in known]
        y = [s["mean"] for _, s in known]
        error = [
            [s["mean"] - s["low"] for _, s in known],
            [s["high"] - s["mean"] for _, s in known],
        ]
        label = objective.replace("_", " ")
        axes.errorbar(
            x, y, yerr=error, marker="o", ms=4, capsize=2.5, color=colours[objective], label=label
        )
        target = data["targets"][objective]
        if target is not None:
            axes.axhline(target, color=colours[objective], lw=0.8, ls=":")
    axes.set_xticks([r["round"] for r in rounds], [_name(r["round"]) for r in rounds])
    axes.set_ylim(0.9, 5.1)
    axes.set_xlabel("round")
    axes.set_ylabel("selection mean (1-5)")
    axes.legend(frameon=False, loc="lower right")


def _front(axes: Any, data: dict[str, Any]) -> None:
    first, second, *rest = data["objectives"]
    for round_ in data["rounds"]:
        means = [round_["scores"][o]["selection"]["mean"] for o in data["objectives"]]
        if any(m is None for m in means):
            continue
        kept = round_["round"] in data["archive"]
        shade = (means[2] - 1) / 4 if rest else 0.6
        axes.scatter(
            means[0],
            means[1],
            s=60,
            c=[shade],
            cmap="viridis",
            vmin=0,
            vmax=1,
            marker="o" if kept else "x",
        )
        axes.annotate(
            _name(round_["round"]), (means[0], means[1]), textcoords="offset points", xytext=(6, 4)
        )
    axes.set_xlabel(first.replace("_", " "))
    axes.set_ylabel(second.replace("_", " "))
    third = f"; lighter: better {rest[0].replace('_', ' ')}" if rest else ""
    axes.set_title(f"o in the archive, x outside{third}", fontsize=9, loc="left")


def _mixture(axes: Any, data: dict[str, Any]) -> None:
    mixtures = []
    if data["calibration"]:
        mixtures.append(("static", data["calibration"]["mixture"]["ratios"]))
    mixtures += [(str(r["round"]), r["plan"]["ratios"]) for r in data["rounds"] if r["plan"]]
    names = [name for name, _ in mixtures]
    bottom = [0.0] * len(mixtures)
    datasets = sorted({d for _, ratios in mixtures for d in ratios})
    for colour, dataset in zip(COLOURS * 9, datasets, strict=False):
        height = [ratios.get(dataset, 0.0) for _, ratios in mixtures]
        axes.bar(names, height, bottom=bottom, color=colour, width=0.65, label=dataset)
        bottom = [b + h for b, h in zip(bottom, height, strict=True)]
    axes.set_ylim(0, 1)
    axes.set_xlabel("round")
    axes.set_ylabel("share of tokens")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _heat(axes: Any, rounds: list[Round], keys: list[tuple[str, str]]) -> None:
    grid = []
    for objective, slice_ in keys:
        found = [r.profile.find(objective, slice_) for r in rounds]
        grid.append(
            [s.score.mean if s and s.score.mean is not None else float("nan") for s in found]
        )
    axes.imshow(grid, cmap="RdYlGn", vmin=1, vmax=5, aspect="auto")
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                "?" if value != value else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
            )
    axes.set_xticks(range(len(rounds)), [_name(r.round) for r in rounds])
    axes.set_yticks(range(len(keys)), [f"{o} {s}".replace("_", " ") for o, s in keys])
    axes.spines[:].set_visible(False)
    axes.set_xlabel("round (steering suites)")


KINDS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "scores": _scores,
    "front": _front,
    "mixture": _mixture,
}
