"""What a chat template may not decide by itself: the day, chance, and whether the model reasons.

A pin is a line before the template's own text. The text with its pins is the template for
everything: counting, training, generation in this process, and a vLLM server's
`--chat-template`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

from eval.rendering.answers import STEM, NotLocated, locate, marked
from eval.rendering.render import Chat, ChatError, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DAY = datetime(2024, 7, 26)
"""The day that every rendering is of: the one that Llama's templates fall back on."""

CLOCK = "strftime_now"
CHANCE = re.compile(r"\|\s*random\b|\blipsum\b")
# Directives of strftime that a day and midnight fill, longest first.
DIRECTIVES = (
    *("%-d", "%-m", "%-H", "%-I", "%-M", "%-S", "%-j", "%-y"),
    *("%A", "%a", "%B", "%b", "%c", "%D", "%d", "%e", "%F", "%f", "%G", "%H", "%h", "%I", "%j"),
    *("%M", "%m", "%p", "%R", "%S", "%T", "%U", "%u", "%V", "%W", "%w", "%X", "%x", "%Y", "%y"),
    "%Z",
    "%z",
)
# Names under which published templates ask whether to reason.
REASONING = ("enable_thinking", "thinking")
QUESTION: Chat = [{"role": "user", "content": "no"}]
ANSWERED: Chat = [*QUESTION, {"role": "assistant", "content": "yes"}]


# A call of the clock with its format written out.
FORMAT = re.compile(CLOCK + r"\(\s*(['\"])([^'\"]*)\1\s*\)")
CLOCK_MACRO = f"macro {CLOCK}("


def _clock_pin() -> str:
    """A macro that stands for `strftime_now` and always tells the same day."""
    filled = "format"
    for directive in DIRECTIVES:
        filled += f" | replace({directive!r}, {DAY.strftime(directive)!r})"
    return f"{{%- {CLOCK_MACRO}format) -%}}{{{{ {filled} }}}}{{%- endmacro %}}\n"


CLOCK_PIN = _clock_pin()


def reasoning_pin(name: str) -> str:
    """The line that tells a template not to ask for reasoning."""
    return f"{{%- set {name} = false %}}\n"


def pinned_day(template: str) -> str | None:
    """The day (ISO) that a template with its pins always writes; None if it has no clock."""
    return DAY.date().isoformat() if CLOCK_PIN in template else None


def pinned_reasoning(template: str) -> str | None:
    """The variable that is pinned to false, so that the model is not asked to reason."""
    for name in REASONING:
        if template.startswith(reasoning_pin(name)):
            return name
    return None


def pin(tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the pins that a tokenizer's chat template needs before its text.

    A template that has its pins stays as it is. One that cannot be rendered is left alone: the
    check of base and template says why.
    """
    template = tokenizer.chat_template
    if CLOCK in template and CLOCK_PIN not in template:
        tokenizer.chat_template = CLOCK_PIN + template
    if pinned_reasoning(template) or _follows_prompt(tokenizer):
        return
    plain = tokenizer.chat_template
    for name in REASONING:
        if name not in plain:
            continue
        tokenizer.chat_template = reasoning_pin(name) + plain
        if _follows_prompt(tokenizer):
            return
    tokenizer.chat_template = plain


def _follows_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an answer stands right where the generation prompt ends.

    True too for templates that cannot be rendered: no pin would help.
    """
    try:
        (prompt,) = texts_of(tokenizer, [QUESTION], answer_next=True)
        text, template = texts_of(tokenizer, [ANSWERED, marked(ANSWERED, STEM)])
        (span,) = locate(text, template, ["yes"], STEM)
    except (ChatError, NotLocated):
        return True
    return text.startswith(prompt) and not text[len(prompt) : span.start].strip()


def chance_faults(template: str) -> list[str]:
    """What of a template's day or chance no pin can fix: sentences, none if all is well."""
    faults = []
    if CHANCE.search(template):
        faults.append(
            "the chat template draws lots (`random` or `lipsum`), so no two renderings are alike; "
            "take that out of a copy and give the file as chat_template"
        )
    formats = [found[2] for found in FORMAT.finditer(template)]
    calls = template.count(f"{CLOCK}(") - template.count(CLOCK_MACRO)
    if calls != len(formats) or any(_filled(each) != DAY.strftime(each) for each in formats):
        faults.append(
            "the chat template writes today's date in a way that cannot be pinned; write a fixed "
            "date into a copy and give the file as chat_template"
        )
    return faults


def _filled(form: str) -> str:
    """What the pin makes of a format of strftime.

    >>> _filled("%d %b %Y")
    '26 Jul 2024'
    """
    for directive in DIRECTIVES:
        form = form.replace(directive, DAY.strftime(directive))
    return form
