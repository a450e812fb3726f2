"""`pool import --suite`: files of prompts, or of recorded chats, become the prompts of a suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from eval.objectives.base import Objective
from eval.suite_defaults import DEFAULTS
from mosaic.core.errors import UsageError
from mosaic.core.types.base import canonical_json
from mosaic.core.types.evaluation import ROLES, Prompt
from training.data.importers.fields import Unusable
from training.data.importers.job import (
    ImportJob,
    Tally,
    chat_shape,
    check_names,
    check_tally,
    half_character,
    origin,
    text_digest,
    usable_rows,
)
from training.data.importers.prompts import (
    PROMPT_SHAPES,
    RECORDED,
    ImportedPrompt,
    PromptShape,
    recorded,
)
from training.data.importers.reading import Row
from training.data.importers.slices import category_of, with_own_slice
from training.data.outputs import check_absent, check_place
from training.data.provenance import SUITE_CARD, write_card

UNNAMED = "-"
NAME_LENGTH = 16


def import_suite(
    job: ImportJob, objective: Objective, out: Path, per_role: int, independent: bool = False
) -> Tally:
    """Write suite prompts of an objective into the folder `out`, and the card.

    The three roles are disjoint, `per_role` prompts each, or thirds if the file has fewer. A hash
    of the request chooses them, so that the order of the file does not matter. An `independent` suite
    has one role, audit, and a `suite.yaml` that names the objective. Raises UsageError naming the bad
    rows.
    """
    roles = ("audit",) if independent else ROLES
    check_names(job)
    tally = Tally()
    shape = partial(_prompt_shape(job, objective.name, tally), objective)
    check_place(out / SUITE_CARD)
    check_absent(out / SUITE_CARD, *(out / f"{role}.jsonl" for role in ROLES))
    if independent:
        check_absent(out / DEFAULTS)
    prompts = _distinct_prompts(job, shape, tally)
    check_tally(job, tally, len(prompts), f"{out} was not written")
    size = min(per_role, len(prompts) // len(roles))
    if size == 0:
        sources, wanted = ", ".join(job.sources), "a suite" if independent else "three roles"
        raise UsageError(f"{sources}: {len(prompts)} usable prompts cannot fill {wanted}")
    _write_roles(prompts, size, roles, out)
    if independent:
        (out / DEFAULTS).write_text(f"objective: {objective.name}\n", encoding="utf-8")
    tally.rows = size * len(roles)
    if len(prompts) > tally.rows:
        tally.left_out["not drawn (see --per-role)"] = len(prompts) - tally.rows
    write_card(out / SUITE_CARD, origin(job, tally))
    return tally


def _distinct_prompts(
    job: ImportJob, shape: Callable[[Row, str], ImportedPrompt], tally: Tally
) -> list[Prompt]:
    """All usable prompts, each request once, in the order of the requests' hashes."""
    by_request: dict[str, Prompt] = {}
    for place, row in usable_rows(job, tally, lambda rows: None, learnt=False):
        try:
            prompt, left_out = _named_prompt(job, shape, row)
        except UnicodeEncodeError as error:
            tally.refuse(place, half_character(error))
            continue
        except (Unusable, ValidationError) as error:
            tally.refuse(place, str(error).splitlines()[0])
            continue
        for reason, count in left_out.items():
            what = f"unverifiable constraint: {reason}" if job.shape == "ifeval" else reason
            tally.left_out[what] += count
        if prompt is None:
            if job.shape == "ifeval":
                tally.left_out["prompts with no verifiable constraint"] += 1
            continue
        if job.slice_from:
            tally.note_slice(prompt.slice, category_of(row, job.slice_from))
        request = text_digest(canonical_json([prompt.system, prompt.turns]))
        if request in by_request:
            tally.left_out["repeats another prompt word for word"] += 1
        else:
            by_request[request] = prompt
    return [by_request[request] for request in sorted(by_request)]


def _named_prompt(
    job: ImportJob, shape: Callable[[Row, str], ImportedPrompt], row: Row
) -> ImportedPrompt:
    """A row's prompt, named by a hash of what it asks.

    Raises UnicodeEncodeError for a text that cannot be written.
    """
    prompt, left_out = shape(row, UNNAMED)
    if prompt is None:
        return None, left_out
    if job.slice_from:
        prompt = with_own_slice(prompt, row, job.slice_from)
    asked: object = [prompt.system, prompt.turns]
    if job.shape in PROMPT_SHAPES:
        asked = prompt.turns[0]
    name = f"{job.dataset}-{text_digest(canonical_json(asked))[:NAME_LENGTH]}"
    prompt = prompt.model_copy(update={"id": name})
    canonical_json(prompt.model_dump()).encode()
    return prompt, left_out


def _write_roles(prompts: Sequence[Prompt], size: int, roles: Sequence[str], out: Path) -> None:
    """The first `size` prompts for the first role, the next for the second, and so on."""
    out.mkdir(parents=True, exist_ok=True)
    for number, role in enumerate(roles):
        part = prompts[number * size : (number + 1) * size]
        lines = [canonical_json(prompt.json_data()) + "\n" for prompt in part]
        (out / f"{role}.jsonl").write_text("".join(lines), encoding="utf-8")


def _prompt_shape(job: ImportJob, objective: str, tally: Tally) -> PromptShape:
    """How rows become prompts. Raises UsageError if the shape does not serve the objective."""
    if job.shape in PROMPT_SHAPES:
        wanted, shape = PROMPT_SHAPES[job.shape]
        if objective not in wanted:
            made = " or ".join(wanted)
            raise UsageError(f"--as {job.shape} makes prompts of {made}, not of {objective}")
        return shape
    if objective not in RECORDED:
        raise UsageError(
            f"--suite {objective}: recorded chats make suites of {' or '.join(RECORDED)}; "
            "verifiable constraints come with their parameters in --as ifeval"
        )
    return recorded(chat_shape(job, answers=False), tally.note_unread)
