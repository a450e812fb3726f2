"""How right the curvature is: against matrices written out, and against kronfluence.

kronfluence is in no extra: its last release needs a package that does not go with every build of
torch. Its row is measured in an environment of its own that sees this one's packages:

    python3 -m venv /tmp/kronfluence
    .venv/bin/python -c "import site; print(site.getsitepackages()[0])" \
        > /tmp/kronfluence/lib/python3.11/site-packages/shared.pth
    /tmp/kronfluence/bin/pip install --no-deps kronfluence==1.0.1 einconv einops opt_einsum
    /tmp/kronfluence/bin/python -m benchmarks influence
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import fmean

from benchmarks.figures import CannotRun, Rows, figure, not_measured
from benchmarks.influence_networks import (
    FAMILY,
    deep_linear_cosines,
    dense_error,
    drawn_classes,
    family_cosines,
    fitted,
    stack,
)

MILLION = 1e6


def influence(quick: bool) -> Rows:
    """The curvature against exact ones; the scores against kronfluence's, with identical labels."""
    import torch
    from torch import nn

    model = stack([4, 5, 3], nn.Tanh, bias=True)
    inputs, classes = torch.randn(64, 3, 4), torch.randint(3, (64, 3))
    batches = [(inputs, torch.ones(64, 3), classes)]
    blocks = fitted(model, batches, drawn_classes, damping=0.1).blocks.values()
    worst = max(dense_error(block) for block in blocks)
    what = "relative error of EK-FAC against its own dense matrix"
    rows = [figure(what, worst * MILLION, "millionths", at_most=100)]
    least = min(deep_linear_cosines().values())
    what = "cosine with the exact block inverse of a deep linear network"
    rows.append(figure(what, least, "cosine", at_least=0.999))
    rows += _family()
    try:
        rows += _against_kronfluence(20 if quick else 60)
    except CannotRun as error:
        rows.append(not_measured(f"against kronfluence: cannot run here: {error}"))
    return rows


def _family() -> Rows:
    """Cosines on the non-linear family: lowest, mean and highest by variant."""
    found = [family_cosines(name, sizes) for name, sizes in FAMILY]
    nearer = sum(cosines["inverse"] > cosines["identity"] for cosines in found)
    what = f"of {len(FAMILY)} non-linear networks, EK-FAC nearer than the plain gradient on"
    rows = [figure(what, nearer, "networks", at_least=len(FAMILY))]
    for variant, name in (
        ("inverse", "EK-FAC"),
        ("identity", "plain gradient"),
        ("released", "released variant"),
    ):
        values = [cosines[variant] for cosines in found]
        span = f"{min(values):.2f} to {max(values):.2f}"
        rows.append(figure(f"mean cosine of the {name} ({span})", fmean(values), "cosine"))
    return rows


def _against_kronfluence(count: int) -> Rows:
    """Pairwise scores on a LoRA with padded rows, ours and theirs."""
    try:
        from benchmarks.influence_kronfluence import compare
    except ImportError as error:
        raise CannotRun(
            f"{error}; how to make the environment stands in benchmarks/influence.py"
        ) from None

    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        found = compare(Path(folder), count)
        seconds = time.monotonic() - started
    what = (
        f"relative error of {count} scores against kronfluence, {found.layers} LoRA layers, padded"
    )
    return [
        figure(what, found.error * MILLION, "millionths", at_most=100),
        figure("time of kronfluence over ours", found.slower, "times"),
        figure("seconds of the comparison", seconds, "s"),
    ]
