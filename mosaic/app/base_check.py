"""Everything about a base model and its chat template that can be known without training.

One report: all faults are named at once. `validate`, `pool build --model` and the start of a run
ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_folder import check_model_folder, model_faults
from eval.rendering.ends import named_stops
from eval.rendering.probe import Probe, probe
from eval.rendering.render import Chat, ChatError, texts_of
from eval.rendering.tokenizer import load_tokenizer
from mosaic.app.shapes import Finding
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SHOWN = 20
PlacedPrompt = tuple[str, Prompt]
"""(where a prompt stands, such as `safety/audit`; the prompt)"""


@dataclass(frozen=True)
class Base:
    """A base model that is checked: its folder, its tokenizer, what its template makes of chats."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    probe: Probe
    prompts: Sequence[PlacedPrompt]


def template_faults(base: Base) -> list[str]:
    """Why no assistant's turn could be learnt exactly, or be generated as it is learnt."""
    return base.probe.faults


def prompt_faults(base: Base) -> list[str]:
    """The suite prompts that the template refuses, or does not render with all their text.

    One that refuses every prompt alike has a fault of its own, which is named once.
    """
    refused = []
    reasons = set()
    for where, prompt in base.prompts:
        reason = _refusal(base.tokenizer, prompt)
        if reason is not None:
            refused.append(f"{where}: {prompt.id}: {reason}")
            reasons.add(reason)
    all_alike = len(refused) == len(base.prompts) and len(reasons) == 1
    if not refused or (all_alike and base.probe.faults):
        return []
    shown = "\n    ".join(refused[:MAX_SHOWN])
    if len(refused) > MAX_SHOWN:
        shown += f"\n    and {len(refused) - MAX_SHOWN:,} more"
    return [
        f"the chat template refuses {len(refused):,} prompts of the suites; change them (a system "
        "message can stand before the first turn's text), or name another chat_template:\n    "
        + shown
    ]


# What is asked of every base, in this order: of its folder, then of its tokenizer and template.
FOLDER_FAULTS: tuple[Callable[[Path], list[str]], ...] = (model_faults,)
FAULTS: tuple[Callable[[Base], list[str]], ...] = (template_faults, prompt_faults)


def check_base(
    folder: Path, template: Path | None = None, prompts: Sequence[PlacedPrompt] = ()
) -> list[Finding]:
    """Findings about base, template and suite prompts.

    Raises one UsageError that names every fault.
    """
    faults = [fault for find in FOLDER_FAULTS for fault in find(folder)]
    base = _opened(folder, template, prompts, faults)
    if base is not None:
        faults += [fault for find in FAULTS for fault in find(base)]
    if faults or base is None:
        listed = "\n  ".join(dict.fromkeys(faults))
        raise UsageError(f"base_model: {folder}:\n  {listed}")
    return _findings(base)


def _opened(
    folder: Path, template: Path | None, prompts: Sequence[PlacedPrompt], faults: list[str]
) -> Base | None:
    """The base with its tokenizer. None if there is none; why is added to `faults`."""
    try:
        check_model_folder(folder)
    except UsageError:
        return None  # its faults are among those of the folder
    try:
        tokenizer = load_tokenizer(folder, template)
    except UsageError as error:
        faults.append(str(error).removeprefix(f"{folder}: "))
        return None
    return Base(folder, tokenizer, probe(tokenizer), prompts)


def _findings(base: Base) -> list[Finding]:
    """What is decided about a base that has no fault."""
    found = base.probe
    decisions = ["every answer and its end located in the whole text and labelled by token"]
    if found.day:
        decisions.append(f"the date that it writes is pinned to {found.day}")
    if found.reasoning:
        decisions.append(f"{found.reasoning} is pinned to false")
    result = "; ".join([*decisions, *found.notes])
    return [
        Finding(check="chat template", result=result),
        Finding(check="ends of turns", result=_ends(base)),
    ]


def _ends(base: Base) -> str:
    """At which tokens generation stops, and which of them the folder does not name."""
    named = named_stops(base.folder, base.tokenizer)
    taught = [base.tokenizer.convert_ids_to_tokens(token) for token in base.probe.ends]
    added = [
        base.tokenizer.convert_ids_to_tokens(token)
        for token in base.probe.ends
        if token not in named
    ]
    result = f"turns end in {', '.join(taught)}, where generation stops"
    if added:
        result += (
            f"; the folder does not name {', '.join(added)} as an end: it is added to the stop "
            "tokens of the generator, and whoever serves an exported adapter must add it too"
        )
    return result


def _refusal(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str | None:
    """Why a prompt cannot be asked turn by turn; None if it can."""
    chat: Chat = []
    if prompt.system:
        chat.append({"role": "system", "content": prompt.system})
    for turn in prompt.turns:
        chat.append({"role": "user", "content": turn})
        try:
            (text,) = texts_of(tokenizer, [chat], answer_next=True)
        except ChatError as error:
            return error.reason
        for message in chat:
            if message["content"].strip() not in text:
                return f"the {message['role']} message is left out or changed"
        chat.append({"role": "assistant", "content": "yes"})
    return None
