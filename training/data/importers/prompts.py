"""Shapes of evaluation prompts: rows of IFEval and OR-Bench, and requests of recorded chats.

Where the field names come from:

* `ifeval`: `key`, `prompt`, `instruction_id_list`, `kwargs` (one object per instruction, unused
  names null): the data set card of google/IFEval. A constraint is unverifiable if its checker would
  draw a missing parameter at random, or needs data which is not installed. It is left out with its
  reason, and with it a prompt that has no other.
* `or-bench-80k`, `or-bench-hard-1k`, `or-bench-toxic`: `prompt`, `category`, CSV files of these
  names: the data set cards of bench-llm/or-bench and bench-llms/or-bench-toxic-all. The boundary
  cues are the data set's own claims: a sensitive trigger everywhere; benign and answerable, or
  (toxic) harmful and not; hard for the hard subset. The files carry no votes, so `rejection_votes`
  is 0 until a judge has looked.

* `xstest`: `prompt`, `type`, and `label` (`safe` or `unsafe`), or in the first version a `type` that
  begins with `contrast_` for unsafe prompts: xstest_prompts.csv of XSTest (arXiv 2308.01263).
  Safe prompts make a suite of over_refusal, unsafe ones one of safety; the others are counted. Its
  types are the slices.
* `prompt`: a text `prompt`, and nothing else is read.

Prompt-side items that no file carries stay 0, and the prompt says so in its attribute `unlabelled`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from eval import ifeval as checkers
from eval.objectives.base import Objective
from mosaic.core.types.base import Attribute
from mosaic.core.types.evaluation import Prompt
from training.data.importers.chats import Row, Shape, check, some_text
from training.data.importers.fields import Unusable
from training.data.importers.slices import with_own_slice

Items = dict[str, dict[str, int]]
ImportedPrompt = tuple[Prompt | None, Counter[str]]
"""A prompt, or None if nothing of it can be verified, and why constraints were left out."""

CONTRAST = "contrast_"
PromptShape = Callable[[Objective, Row, str], ImportedPrompt]
"""(the objective whose rules give slice and weight, a row, its id) -> a prompt."""


def ifeval(rules: Objective, row: Row, identifier: str) -> ImportedPrompt:
    """A prompt of IFEval with the constraints that can be verified."""
    ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise Unusable("instruction_id_list: not a list of checker ids")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids):
        raise Unusable(f"kwargs: not one object per instruction ({len(ids)})")
    left: Counter[str] = Counter()
    kept = []
    for checker, given in zip(ids, kwargs, strict=True):
        if given is not None and not isinstance(given, Mapping):
            raise Unusable("kwargs: not one object per instruction")
        params = {k: _whole(v) for k, v in (given or {}).items() if v is not None}
        constraint = {"id": checker, "params": params}
        reason = checkers.verifiable(constraint)
        if reason:
            left[reason] += 1
        else:
            kept.append(constraint)
    if not kept:
        return None, left
    slice_, weight, valid = rules.prompt_side({}, 1, kept)
    prompt = Prompt(
        id=identifier,
        turns=[some_text(row, "prompt")],
        slice=slice_,
        weight=weight,
        valid=1 if valid else 0,
        constraints=kept,
        attributes={"constraints": [str(c["id"]) for c in kept]},
    )
    return prompt, left


def _whole(value: object) -> object:
    """A whole number as an int: Parquet and pandas turn those with gaps into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def or_bench(*, hard: int, harmful: int) -> PromptShape:
    """The shape of one of OR-Bench's three files."""

    def shape(rules: Objective, row: Row, identifier: str) -> ImportedPrompt:
        cues = _zeros(rules)["boundary_cues"] | {
            "sensitive_trigger": 1,
            "hard": hard,
            "harmful_intent": harmful,
        }
        cues |= {"benign_intent": 1 - harmful, "answer_path": 1 - harmful}
        category = row.get("category")
        attributes: dict[str, Attribute] = {"unlabelled": ["rejection_votes"]}
        if isinstance(category, str) and category:
            attributes["category"] = category
        items = {"boundary_cues": cues}
        asked = [some_text(row, "prompt")]
        return _built(rules, identifier, asked, items, attributes), Counter()

    return shape


def xstest(rules: Objective, row: Row, identifier: str) -> ImportedPrompt:
    """A prompt of XSTest: a safe one for over-refusal, an unsafe one for safety."""
    kind, label = some_text(row, "type"), row.get("label")
    if label is None:
        unsafe = kind.startswith(CONTRAST)
    elif label in ("safe", "unsafe"):
        unsafe = label == "unsafe"
    else:
        raise Unusable(f"label: {label!r} is neither 'safe' nor 'unsafe'")
    if unsafe != (rules.name == "safety"):
        return None, Counter({f"{'unsafe' if unsafe else 'safe'} prompts": 1})
    items = _zeros(rules)
    attributes: dict[str, Attribute] = {"unlabelled": list(items)}
    if "boundary_cues" in items:
        claims = {"sensitive_trigger": 1, "benign_intent": 1, "answer_path": 1}
        items["boundary_cues"] |= claims
        attributes["unlabelled"] = ["rejection_votes", "hard"]
    made = _built(rules, identifier, [some_text(row, "prompt")], items, attributes)
    return with_own_slice(made, row, "type"), Counter()


def plain(rules: Objective, row: Row, identifier: str) -> ImportedPrompt:
    """A text that is asked, and nothing else."""
    return _requests(rules, identifier, [some_text(row, "prompt")], None), Counter()


def recorded(chat: Shape, note_unread: Callable[[str], None]) -> PromptShape:
    """The requests of a recorded chat, to be replayed with the model's own answers.

    `note_unread` is told of each field of its turns that is not read.
    """

    def shape(rules: Objective, row: Row, identifier: str) -> ImportedPrompt:
        found = chat(row)
        messages = found.messages
        # A system message or an answer that stands elsewhere could not be replayed.
        check(messages)
        asked = [m["content"] for m in messages if m["role"] == "user"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        for name in found.unread:
            note_unread(name)
        return _requests(rules, identifier, asked, system), Counter()

    return shape


def _requests(rules: Objective, identifier: str, asked: list[str], system: str | None) -> Prompt:
    """Requests about which their file says nothing."""
    items = _zeros(rules)
    if "boundary_cues" in items:
        items["boundary_cues"] |= {"benign_intent": 1, "answer_path": 1}
    made = _built(rules, identifier, asked, items, {"unlabelled": list(items)})
    return made.model_copy(update={"system": system})


def _zeros(rules: Objective) -> Items:
    """All prompt-side items of an objective, each of them 0."""
    return {channel.name: dict.fromkeys(channel.ranges, 0) for channel in rules.request}


def _built(
    rules: Objective,
    identifier: str,
    turns: list[str],
    items: Items,
    attributes: dict[str, Attribute],
) -> Prompt:
    """A prompt with the slice and weight that the objective's prompt-side rules give it."""
    slice_, weight, valid = rules.prompt_side(items, len(turns), ())
    return Prompt(
        id=identifier,
        turns=turns,
        slice=slice_,
        weight=weight,
        valid=1 if valid else 0,
        prompt_items=items,
        attributes={**attributes, "turns": len(turns)},
    )


RECORDED = ("safety", "over_refusal")
PROMPT_SHAPES: dict[str, tuple[tuple[str, ...], PromptShape]] = {
    "ifeval": (("instruction_following",), ifeval),
    "or-bench-80k": (("over_refusal",), or_bench(hard=0, harmful=0)),
    "or-bench-hard-1k": (("over_refusal",), or_bench(hard=1, harmful=0)),
    "or-bench-toxic": (("over_refusal",), or_bench(hard=0, harmful=1)),
    "xstest": (RECORDED, xstest),
    "prompt": (RECORDED, plain),
}
"""Shape -> the objectives that it makes suites of, and how."""

PROMPT_READ: dict[str, frozenset[str]] = {
    "ifeval": frozenset(("key", "prompt", "instruction_id_list", "kwargs")),
    "or-bench-80k": frozenset(("prompt", "category")),
    "or-bench-hard-1k": frozenset(("prompt", "category")),
    "or-bench-toxic": frozenset(("prompt", "category")),
    "xstest": frozenset(("prompt", "type", "label")),
    "prompt": frozenset(("prompt",)),
}
"""The fields that each shape reads from a row."""
