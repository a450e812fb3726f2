"""What a base's chat template makes of a few chats: everything known of it without training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.rendering.answers import NotLocated, Span, answers_of, locate, marked, stem_for
from eval.rendering.pins import chance_faults, pinned_day, pinned_reasoning
from eval.rendering.render import Chat, ChatError, texts_of
from eval.rendering.turns import TurnEncoder, TurnShape
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("Keep it dry.", "7 days, in a box.", "(No) more than that?")
QUESTIONS = ("How do I store bread?", "How long?", "Can I freeze it?")
SYSTEM: Chat = [{"role": "system", "content": "You are a careful baker."}]


MOVED = "earlier answers stand after other text than an answer is generated after"
MARKERS = re.compile(r"\{%-?\s*generation\b")
# How many characters before an answer are its header, and how near the end of a prompt it stands.
HEADER, FAR = 12, 80


@dataclass(frozen=True)
class Probe:
    """What was found.

    `faults` keep the base from being trained on; `notes` are worth knowing. `ends` are the tokens
    that end a taught turn, `day` (ISO) and `reasoning` what is pinned in the template.
    """

    shape: TurnShape
    faults: list[str]
    notes: list[str]
    day: str | None
    reasoning: str | None

    @property
    def ends(self) -> list[int]:
        return sorted(self.shape.ends)


def chat_of(turns: int, system: bool = False) -> Chat:
    """A chat of one to three turns that begin with a letter, a digit and a bracket."""
    chat: Chat = list(SYSTEM) if system else []
    for question, answer in zip(QUESTIONS[:turns], ANSWERS[:turns], strict=True):
        chat += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return chat


def probe(tokenizer: PreTrainedTokenizerBase) -> Probe:
    """Render and tokenise chats of one to three turns, with and without a system message.

    A chat of one turn without a system message must be exact, and every other one that the
    template does not refuse.
    """
    faults = chance_faults(tokenizer.chat_template)
    # Reason -> the chats that it is true of.
    inexact: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    moved: dict[str, list[str]] = {}
    leads: set[str] = set()
    ends: set[int] = set()
    encoder = TurnEncoder(tokenizer)
    for turns, system in ((1, False), (2, False), (3, False), (1, True), (3, True)):
        chat = chat_of(turns, system)
        named = f"a chat of {turns} turns" if turns > 1 else "a question and an answer"
        if system:
            named += " with a system message"
        try:
            (text,) = texts_of(tokenizer, [chat])
        except ChatError as error:
            if turns == 1 and not system:
                faults.append(
                    f"the chat template cannot render {named} ({error.reason}); mend a copy and "
                    "give the file as chat_template"
                )
                break
            refused.setdefault(error.reason, []).append(named)
            continue
        try:
            (found,) = encoder.encode([chat])
            spans = _spans(tokenizer, chat, text)
            prompts = [_prompt(tokenizer, chat, number) for number in range(turns)]
        except ChatError as error:
            # Without its system message a chat is fine; rows and prompts with one are refused.
            dropped = system and SYSTEM[0]["content"] not in text
            (refused if dropped else inexact).setdefault(error.reason, []).append(named)
            if turns == 1 and not system:
                break  # longer chats would only say the same again
            continue
        except NotLocated as error:
            inexact.setdefault(str(error), []).append(named)
            continue
        ends |= {found.ids[answer.end - 1] for answer in found.answers}
        leads.add(text[len(prompts[-1]) : spans[-1].start])
        for span, prompt in zip(spans[:-1], prompts[:-1], strict=True):
            before = text[: span.start]
            if not _follows(before, prompt):
                kind = moved if _same_header(before, prompt) else inexact
                kind.setdefault(MOVED, []).append(named)
    for reason, chats in inexact.items():
        faults.append(
            f"{_some(chats)} cannot be labelled exactly: {reason}; name a chat template that can "
            "as chat_template (`pool build --chat-template FILE`)"
        )
    if len(leads) > 1:
        faults.append(
            f"the chat template writes different white space before answers: {sorted(leads)}"
        )
    notes = [f"the chat template refuses {_some(c)} ({reason})" for reason, c in refused.items()]
    for reason, chats in moved.items():
        notes.append(f"in {_some(chats)} {reason}; they are learnt as they are rendered")
    template = tokenizer.chat_template
    if not faults and MARKERS.search(template) and not _marks_answers(tokenizer, encoder):
        notes.append(
            "the {% generation %} markers of the chat template do not mark the answers and their "
            "ends; they are not used, and labels are exact without them"
        )
    shape = TurnShape(min(leads, default=""), frozenset(ends))
    return Probe(shape, faults, notes, pinned_day(template), pinned_reasoning(template))


def _marks_answers(tokenizer: PreTrainedTokenizerBase, encoder: TurnEncoder) -> bool:
    """Whether the template's own markers mark what is learnt in chats of three turns.

    They may mark white space beside it, as those of TRL's templates do.
    """
    for system in (False, True):
        chat = chat_of(3, system)
        try:
            (found,) = encoder.encode([chat])
        except ChatError:
            continue  # it takes no system message
        encoded = tokenizer.apply_chat_template(
            [chat], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        learnt: set[int] = set()
        for start, end in found.answers:
            learnt.update(range(start, end))
        marked_ones = {place for place, mark in enumerate(encoded["assistant_masks"][0]) if mark}
        beside = [found.ids[place] for place in sorted(marked_ones - learnt)]
        if not learnt <= marked_ones or tokenizer.decode(beside).strip():
            return False
    return True


def turn_shape(tokenizer: PreTrainedTokenizerBase) -> TurnShape:
    """The shape of a turn. Raises UsageError with every fault of the template."""
    found = probe(tokenizer)
    if found.faults:
        raise UsageError("base_model: " + "; ".join(found.faults))
    return found.shape


def _some(chats: list[str]) -> str:
    """The first of some chats, and how many other kinds there are."""
    chats = list(dict.fromkeys(chats))
    more = len(chats) - 1
    if not more:
        return chats[0]
    return f"{chats[0]} and {more} other kind{'s' if more > 1 else ''} of chat"


def _spans(tokenizer: PreTrainedTokenizerBase, chat: Chat, text: str) -> list[Span]:
    stem = stem_for([chat])
    (template,) = texts_of(tokenizer, [marked(chat, stem)])
    return locate(text, template, answers_of(chat), stem)


def _prompt(tokenizer: PreTrainedTokenizerBase, chat: Chat, number: int) -> str:
    """What the model is given before it writes answer `number` (from 0) of a chat."""
    answers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    (prompt,) = texts_of(tokenizer, [chat[: answers[number]]], answer_next=True)
    return prompt


def _follows(before: str, prompt: str) -> bool:
    """Whether a text is the prompt, and after it nothing but white space."""
    return before.startswith(prompt) and not before[len(prompt) :].strip()


def _same_header(before: str, prompt: str) -> bool:
    """Whether an earlier answer has the header of the generation prompt.

    A system message may stand elsewhere in the text, and an empty block of reasoning be left out.
    """
    return before.rstrip()[-HEADER:] in prompt[-FAR:]
