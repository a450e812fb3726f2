"""What the fields of a row and of a turn mean: read, marks of what is learnt, refused, or unread.

A field is never passed over in silence. It is one of four kinds:

* those that a shape reads;
* marks that say whether an assistant turn is to be learnt (`train`, `loss`, `weight`, ...);
* those that change what a turn says or is for (`tools`, `images`, `reasoning_content`, ...): the
  row cannot be trained on as it was meant, so it is bad;
* all others, such as ids and sources: they are counted and named in the report.

An empty field (null, "", [], {}) says nothing, whatever its name. Names are compared without
case, `_`, `-` and spaces: `toolCalls` is `tool_calls`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from training.models.chat_template import LEARN

EMPTY_TEXTS = {"", "[]", "{}", "null", "none"}
SEPARATORS = re.compile(r"[\s_-]+")
# True: the turn is learnt. From axolotl (`train`, `training`), LLaMA-Factory and verl (`loss`,
# `trainable`), and what others call the same.
LEARN_FLAGS = {
    LEARN,
    "train",
    "training",
    "trainable",
    "istrainable",
    "trainon",
    "loss",
    "lossmask",
    "useloss",
    "hasloss",
    "computeloss",
    "calculateloss",
    "calcloss",
    "learnable",
    "supervised",
    "supervise",
}
# True: the turn is not learnt, as `masked` in torchtune's messages.
SKIP_FLAGS = {
    "mask",
    "masked",
    "ismasked",
    "masklabels",
    "ignore",
    "ignoreloss",
    "noloss",
    "notrain",
    "donottrain",
    "skiploss",
}
# A number: 1 is learnt, 0 is not (OpenAI, axolotl); anything between is not served.
WEIGHTS = {"weight", "lossweight", "trainweight"}
MEANING = {
    "tools": "calls of tools are not trained",
    "tool": "calls of tools are not trained",
    "functions": "calls of tools are not trained",
    "function": "calls of tools are not trained",
    "toolcalls": "a tool call is not text to learn from",
    "toolcall": "a tool call is not text to learn from",
    "functioncall": "a tool call is not text to learn from",
    "toolcallid": "a tool's result is not text of a chat",
    "toolresponses": "a tool's result is not text of a chat",
    "toolresults": "a tool's result is not text of a chat",
    "toolchoice": "calls of tools are not trained",
    "toolschema": "calls of tools are not trained",
    "documents": "the chat template would put documents into the chat",
    "chattemplate": "a row with a chat template of its own",
    "chattemplatekwargs": "options of the chat template change what is rendered",
    "enablethinking": "options of the chat template change what is rendered",
    "addgenerationprompt": "options of the chat template change what is rendered",
    "continuefinalmessage": "options of the chat template change what is rendered",
    "prefix": "an answer that is begun for the model",
    "prefill": "an answer that is begun for the model",
    "refusal": "the answer is not in the content",
    "completionmask": "marks single tokens; only whole turns can be left out",
    "assistantmasks": "marks single tokens; only whole turns can be left out",
    "assistantmask": "marks single tokens; only whole turns can be left out",
    "responsemask": "marks single tokens; only whole turns can be left out",
    "attentionmask": "marks single tokens; only whole turns can be left out",
    "labels": "marks single tokens; only whole turns can be left out",
    "traindetail": "marks parts of a turn; only whole turns can be left out",
    "trainingdetail": "marks parts of a turn; only whole turns can be left out",
    "maskhistory": "marks turns by a rule; mark them one by one with `train`",
    "trainonturn": "marks turns by a rule; mark them one by one with `train`",
    "trainoninput": "requests are never learnt",
    "trainoninputs": "requests are never learnt",
}
for _name in ("image", "images", "imageurl", "imagepath", "pixelvalues"):
    MEANING[_name] = "only text is trained, and this has pictures"
for _name in ("audio", "audios", "audiourl", "speech"):
    MEANING[_name] = "only text is trained, and this has sound"
for _name in ("video", "videos", "videourl"):
    MEANING[_name] = "only text is trained, and this has moving pictures"
for _name in ("file", "files", "attachments", "media"):
    MEANING[_name] = "only text is trained, and this has files"
for _name in ("reasoningcontent", "reasoning", "thinking", "thinkingblocks", "thought", "thoughts"):
    MEANING[_name] = "the reasoning is not in the content, and would not be learnt"
# What a label says of a whole row: true for an answer to learn, false for one to avoid (KTO).
ROW_LABELS = {"label", "desirable", "isdesirable", "ktotag"}
for _name in ("system", "systemprompt", "sysprompt", "systemmessage"):
    MEANING[_name] = "this shape has no system message; name the field in a --map"
MEANING["history"] = "turns before the chat, which this shape does not read"
# Even false says something here.
RENDERING = {"enablethinking", "addgenerationprompt", "continuefinalmessage"}
FLAGS = LEARN_FLAGS | SKIP_FLAGS | WEIGHTS
TRUE_TEXTS, FALSE_TEXTS = ("true", "1"), ("false", "0")


class Unusable(ValueError):
    """Raised for a row that cannot be a chat or a prompt; the text names the field."""


@dataclass(frozen=True)
class Fields:
    """The names of a row or a turn that its shape does not read, by what they mean."""

    flags: tuple[str, ...]
    meaning: tuple[str, ...]
    labels: tuple[str, ...]
    unread: tuple[str, ...]


def plain_name(name: str) -> str:
    """A field's name as names are compared.

    >>> plain_name("toolCalls"), plain_name("tool_calls")
    ('toolcalls', 'toolcalls')
    """
    return SEPARATORS.sub("", name).lower()


@lru_cache(maxsize=4096)
def sorted_fields(names: tuple[str, ...], read: frozenset[str]) -> Fields:
    """The names that are not in `read`, by kind. Rows of one file mostly have the same names."""
    kinds: dict[str, list[str]] = {"flags": [], "meaning": [], "labels": [], "unread": []}
    for name in names:
        if name in read:
            continue
        plain = plain_name(name)
        if plain in FLAGS:
            kinds["flags"].append(name)
        elif plain in MEANING:
            kinds["meaning"].append(name)
        elif plain in ROW_LABELS:
            kinds["labels"].append(name)
        else:
            kinds["unread"].append(name)
    return Fields(**{kind: tuple(some) for kind, some in kinds.items()})


def is_empty(value: object) -> bool:
    """Whether a field says nothing: null, or an empty text, list or object, also written out."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip().lower() in EMPTY_TEXTS
    if isinstance(value, Mapping):
        # Parquet gives every struct all fields, null where a row has none.
        return all(is_empty(one) for one in value.values())
    return isinstance(value, list) and not value


def check_meaning(row: Mapping[str, object], fields: Fields, where: str = "") -> None:
    """Raise Unusable if a field changes what the row or turn says."""
    for name in fields.meaning:
        value, plain = row[name], plain_name(name)
        if is_empty(value) or (value is False and plain not in RENDERING):
            continue
        raise Unusable(f"{where}{name}: {MEANING[plain]}")


def unread_fields(row: Mapping[str, object], fields: Fields) -> list[str]:
    """The fields that hold something, mean nothing to a shape, and are to be counted."""
    return [name for name in fields.unread if not is_empty(row[name])]


def is_learnt(turn: Mapping[str, object], fields: Fields, where: str) -> bool | None:
    """What the marks of a turn say: learnt, not learnt, or None if it has none.

    Raises Unusable for a value that is neither, and for marks that contradict each other.
    """
    said: dict[str, bool] = {}
    for name in fields.flags:
        value = turn[name]
        if value is not None and value != "":
            said[name] = _flag(plain_name(name), value, f"{where}{name}")
    if len(set(said.values())) > 1:
        shown = ", ".join(f"{name} {turn[name]!r}" for name in said)
        raise Unusable(f"{where}{next(iter(said))}: marks contradict each other: {shown}")
    return next(iter(said.values()), None)


def _flag(plain: str, value: object, where: str) -> bool:
    """Whether one mark says that its turn is learnt."""
    text = value.strip().lower() if isinstance(value, str) else None
    if plain in WEIGHTS:
        if isinstance(value, bool) or value not in (0, 1):
            if text not in ("0", "1", "0.0", "1.0"):
                raise Unusable(
                    f"{where}: {value!r}, but a turn is learnt (1) or not (0), nothing between"
                )
            return text.startswith("1")
        return value == 1
    if isinstance(value, bool):
        yes = value
    elif text in ("true", "false"):
        yes = text == "true"
    elif plain == "mask":
        # Numbers stand for either: a mask of the loss has 1 where it is learnt.
        raise Unusable(f"{where}: {value!r} could mean either; write true (not learnt) or false")
    elif value in (0, 1) or text in ("0", "1"):
        yes = value == 1 or text == "1"
    else:
        raise Unusable(f"{where}: {value!r} is none of true, false, 1, 0")
    return yes if plain in LEARN_FLAGS else not yes


@dataclass(frozen=True)
class RowFields:
    """Which fields of a row itself are read, and whether its answers will be `learnt`.

    Fields that somebody has `asked` about by an option are known: they are not counted as unread.
    """

    read: frozenset[str]
    learnt: bool = True
    asked: frozenset[str] = frozenset()

    def check(self, row: Mapping[str, object]) -> list[str]:
        """The fields to count as unread. Raises Unusable for one that changes the meaning."""
        if self.read.issuperset(row):
            return []
        fields = sorted_fields(tuple(row), self.read)
        check_meaning(row, fields)
        return [name for name in self._unread(row, fields) if name not in self.asked]

    def _unread(self, row: Mapping[str, object], fields: Fields) -> list[str]:
        """Fields that are not read. Raises Unusable if one says that the answers are not learnt."""
        if not self.learnt:
            marks = [*fields.flags, *fields.labels]
            return unread_fields(row, fields) + [n for n in marks if not is_empty(row[n])]
        if is_learnt(row, fields, "") is False:
            name = next(n for n in fields.flags if not is_empty(row[n]))
            raise Unusable(f"{name}: {row[name]!r} says that nothing of this row is to be learnt")
        unread = unread_fields(row, fields)
        for name in fields.labels:
            if not is_empty(row[name]):
                unread += _label(name, row[name])
        return unread


def _label(name: str, value: object) -> list[str]:
    """A label beside a chat: good answers are learnt, bad ones refused, other labels counted."""
    good = label_says(value)
    if good is False:
        raise Unusable(
            f"{name}: {value!r} marks an answer that is not to be learnt; leave such rows out with "
            f"--where {name}=true, or as it is written"
        )
    return [] if good else [name]


def label_says(value: object) -> bool | None:
    """Whether a label calls an answer good; None for a label of another kind, such as a class.

    >>> label_says(0), label_says("True"), label_says("safe")
    (False, True, None)
    """
    text = value.strip().lower() if isinstance(value, str) else None
    if value in (0, 1):
        text = TRUE_TEXTS[0] if value else FALSE_TEXTS[0]
    if text in FALSE_TEXTS:
        return False
    return True if text in TRUE_TEXTS else None
