"""What is told of stages that train for stated wishes: the reward model, and who obeys which level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mosaic.core.types.evaluation import LevelAgreement, Score
from mosaic.core.types.preferences import LevelReport


def levels_line(report: LevelReport) -> str:
    """What a stage learnt from that trains for stated wishes."""
    heads = []
    for head in report.heads:
        known = f"{head.objective} {'/'.join(map(str, head.classes))}"
        if head.balanced_accuracy is not None:
            known += f" (balanced accuracy {head.balanced_accuracy:.2f} on {head.held_out} held-out answers)"
        heads.append(known)
    judged = f"{report.judged.answers} judged answers and {report.judged.pool_rows} pool rows"
    return (
        f"{judged}; reward model of {', '.join(heads) or 'no objective'}; "
        f"{report.warm_rows} rows below their levels, {report.chats} prompts rewarded"
    )


def agreement_lines(round_: str, found: Sequence[LevelAgreement]) -> list[str]:
    """How far the reward model agreed with the judge on steering, and whether it was believed."""
    lines = []
    for one in found:
        kappa = "not defined" if one.kappa is None else f"{one.kappa:.2f}"
        stands = "its levels stand" if one.used else "the judge scored all"
        lines.append(
            f"round {round_}, steering of {one.objective} by the reward model: {one.equal:.0%} of "
            f"{one.n} levels equal the judge's, kappa {kappa}: {stands}"
        )
    return lines


def control_lines(control: Mapping[str, Mapping[int, Score]]) -> list[str]:
    """What was asked for against what was measured; empty without such a policy."""
    lines = []
    for objective, levels in control.items():
        cells = []
        for level, score in levels.items():
            cells.append(f"{level} -> {'-' if score.mean is None else f'{score.mean:.2f}'}")
        lines.append(f"{objective}, requested -> measured (audit): {', '.join(cells)}")
    return lines


def control_table(control: Mapping[str, Mapping[int, Score]]) -> tuple[list[str], list[list[str]]]:
    """The same as a table: its header, and a row per objective."""
    levels = sorted({level for scores in control.values() for level in scores})
    rows = []
    for objective, scores in control.items():
        cells = []
        for level in levels:
            score = scores.get(level)
            if score is None or score.mean is None:
                cells.append("")
            else:
                cells.append(f"{score.mean:.2f} ({score.low:.2f}-{score.high:.2f})")
        rows.append([objective, *cells])
    return ["objective", *(f"level {level} requested" for level in levels)], rows
