"""Which tokens of a chat are the assistant's: each answer with the end of its turn.

The tokens are those of the whole text, as it is tokenised anyway. An answer's first token must
begin where the generation prompt ends, with the very tokens of that prompt before it: what is
learnt is then what the model will have to write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from eval.rendering.answers import (
    STEM,
    NotLocated,
    Span,
    answers_of,
    filled,
    frame_of,
    locate,
    marked,
    placeholder,
    stem_for,
)
from eval.rendering.render import Chat, ChatError, is_off, texts_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

# Headers are remembered with their tokens: this many, none longer than this, since those hold the
# user's text.
MANY, SHORT = 1000, 200
MATCHES_NOTHING = r"(?!)"


@dataclass(frozen=True)
class TurnShape:
    """What a template writes round every answer.

    `lead` is white space between the generation prompt and an answer: the model writes it. `ends`
    are the tokens that end a turn.
    """

    lead: str
    ends: frozenset[int]


@dataclass(frozen=True)
class TokenisedChat:
    """A chat's token ids, and tokens [start, end) of each answer with the end of its turn."""

    ids: list[int]
    answers: list[Span]


@dataclass
class TurnEncoder:
    """Tokenises chats by a tokenizer with a fast form, and finds the tokens of each answer.

    With a `shape` every chat is held to it. Without one any control token may end a turn.
    """

    tokenizer: PreTrainedTokenizerBase
    shape: TurnShape | None = None
    _headers: dict[str, list[int]] = field(default_factory=dict)
    # Roles -> what the template writes around the messages of such chats; None if that is unclear.
    _frames: dict[tuple[str, ...], list[str] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._backend = plain_backend(self.tokenizer)
        self.control = control_ids(self.tokenizer)
        self._forbidden = special_ids(self.tokenizer)
        if self.shape:
            self._forbidden |= self.shape.ends
        self._control_text = text_of_tokens(self.tokenizer, self._forbidden)

    def encode(self, chats: Sequence[Chat]) -> list[TokenisedChat]:
        """The tokens of each chat.

        Raises ChatError for the first chat that the template refuses, that it does not render as
        it stands, or whose answers are not whole tokens of their own.
        """
        self._check_texts(chats)
        tokenised: list[TokenisedChat] = []
        prompts = self._prompts(chats)
        for text, encoding, spans in self._located(chats):
            try:
                lead = self._lead(text, prompts[len(tokenised)], spans)
            except NotLocated as reason:
                raise ChatError(len(tokenised), str(reason)) from None
            answers = self._checked(len(tokenised), text, encoding, spans, lead)
            said = [message for message in chats[len(tokenised)] if message["role"] == "assistant"]
            learnt = [span for span, one in zip(answers, said, strict=True) if not is_off(one)]
            tokenised.append(TokenisedChat(encoding.ids, learnt))
        return tokenised

    def lengths(self, chats: Sequence[Chat]) -> list[int]:
        """The number of tokens of each chat.

        Each is checked as `encode` does. The prompt of its last answer is rendered only where what
        stands before that answer is not what nearly every prompt ends with.
        """
        counts: list[int] = []
        for text, encoding, spans in self._located(chats):
            lead = self.shape.lead if self.shape else ""
            self._checked(len(counts), text, encoding, spans, lead)
            if not self._prompted(chats[len(counts)], text, spans, lead):
                self._check_prompt(len(counts), chats[len(counts)], text, spans)
            counts.append(len(encoding))
        return counts

    def _prompted(self, chat: Chat, text: str, spans: Sequence[Span], lead: str) -> bool:
        """Whether the last answer follows a question, after what prompts end with."""
        if self._prompt_end is None or len(chat) < 2 or chat[-2]["role"] != "user":
            return False
        return text.endswith(self._prompt_end + lead, 0, spans[-1].start)

    def _check_prompt(self, position: int, chat: Chat, text: str, spans: Sequence[Span]) -> None:
        """Raise ChatError unless the last answer stands where generation would begin."""
        try:
            self._lead(text, self._prompts([chat])[0], spans)
        except ChatError as error:
            raise ChatError(position, error.reason) from None
        except NotLocated as reason:
            raise ChatError(position, str(reason)) from None

    @cached_property
    def _prompt_end(self) -> str | None:
        """What stands between a question and the answer to be generated; None if that is unclear."""
        try:
            (prompt,) = texts_of(
                self.tokenizer, [[{"role": "user", "content": STEM}]], answer_next=True
            )
        except ChatError:
            return None
        _, found, end = prompt.rpartition(STEM)
        return end if found else None

    def _check_texts(self, chats: Sequence[Chat]) -> None:
        """Raise ChatError if a text would become a control token: it would end a turn."""
        for position, chat in enumerate(chats):
            for number, message in enumerate(chat):
                found = self._control_text.search(message["content"])
                if found:
                    raise ChatError(
                        position, f"message {number} holds {found[0]}, a control token of the model"
                    )

    def _located(self, chats: Sequence[Chat]) -> Iterator[tuple[str, Encoding, list[Span]]]:
        """(text, its encoding, characters of each answer) of each chat."""
        texts = texts_of(self.tokenizer, chats)
        framed = [self._framed(text, chat) for text, chat in zip(texts, chats, strict=True)]
        unclear = [position for position, spans in enumerate(framed) if spans is None]
        stem = stem_for([chats[position] for position in unclear])
        doubtful = [marked(chats[position], stem) for position in unclear]
        try:
            templates = dict(zip(unclear, texts_of(self.tokenizer, doubtful), strict=True))
        except ChatError as error:
            raise ChatError(unclear[error.position], error.reason) from None
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        for position, chat in enumerate(chats):
            text, spans = texts[position], framed[position]
            if spans is None:
                try:
                    spans = locate(text, templates[position], answers_of(chat), stem)
                    _check_others(text, chat)
                except NotLocated as reason:
                    raise ChatError(position, str(reason)) from None
            yield text, encodings[position], spans

    def _framed(self, text: str, chat: Chat) -> list[Span] | None:
        """The places of the answers in a rendered chat if it is the frame of its roles, filled."""
        roles = tuple(message["role"] for message in chat)
        frame = self._frame(roles)
        places = frame and filled(text, frame, [message["content"] for message in chat])
        if not places:
            return None
        return [place for place, role in zip(places, roles, strict=True) if role == "assistant"]

    def _frame(self, roles: tuple[str, ...]) -> list[str] | None:
        """What the template writes around messages with these roles, rendered once."""
        if roles in self._frames or len(self._frames) >= MANY:
            return self._frames.get(roles)
        chat: Chat = []
        for number, role in enumerate(roles):
            chat.append({"role": role, "content": placeholder(STEM, number)})
        try:
            frame = frame_of(texts_of(self.tokenizer, [chat])[0], len(chat), STEM)
        except ChatError:
            frame = None
        self._frames[roles] = frame
        return frame

    def _prompts(self, chats: Sequence[Chat]) -> list[str | None]:
        """What the model is given before it writes the last answer; None if no answer is last."""
        asked = [chat[:-1] for chat in chats if _answered(chat)]
        try:
            rendered = iter(texts_of(self.tokenizer, asked, answer_next=True))
        except ChatError as error:
            positions = [i for i, chat in enumerate(chats) if _answered(chat)]
            raise ChatError(positions[error.position], error.reason) from None
        return [next(rendered) if _answered(chat) else None for chat in chats]

    def _lead(self, text: str, prompt: str | None, spans: Sequence[Span]) -> str:
        """The white space between the prompt and an answer.

        Raises NotLocated unless the last answer stands where generation would begin.
        """
        if prompt is None:
            return self.shape.lead if self.shape else ""
        lead = text[len(prompt) : spans[-1].start]
        if text.startswith(prompt) and len(prompt) <= spans[-1].start and not lead.strip():
            if self.shape is None or lead == self.shape.lead:
                return lead
        raise NotLocated(
            "what stands before its last answer is not the prompt that an answer is generated "
            f"after: the text goes on with {text[spans[-1].start - 30 : spans[-1].start]!r}, the "
            f"prompt ends with {prompt[-30:]!r}"
        )

    def _checked(
        self, position: int, text: str, encoding: Encoding, spans: Sequence[Span], lead: str
    ) -> list[Span]:
        """Tokens of each answer. ChatError if they are not exact."""
        answers = []
        ids = encoding.ids
        for number, span in enumerate(spans):
            try:
                begin = span.start
                if lead and text.endswith(lead, 0, begin):
                    begin -= len(lead)
                start = self._first(text, encoding, ids, begin)
                end = self._end(text, encoding, ids, span)
            except NotLocated as reason:
                raise ChatError(position, f"answer {number + 1}: {reason}") from None
            if not self._forbidden.isdisjoint(ids[start : end - 1]):
                raise ChatError(position, f"answer {number + 1} holds a control token of the model")
            answers.append(Span(start, end))
        return answers

    def _first(self, text: str, encoding: Encoding, ids: Sequence[int], begin: int) -> int:
        """The first token of an answer that begins, with its lead, at a character."""
        first = _token_at(encoding, begin, len(text))
        if first is None:
            raise NotLocated("the template writes no end of its turn")
        held = _characters(encoding, first)
        if held.start < begin and ids[first] in self.control and not text[begin : held.end].strip():
            first += 1  # a control token that takes in the white space after it, as Phi-3's do
        header = first
        while header > 0 and ids[header - 1] not in self.control:
            header -= 1
        header = max(0, header - 1)
        origin = _characters(encoding, header).start if header else 0
        if self._tokens_of(text[origin:begin]) != ids[header:first]:
            raise NotLocated(
                f"its first token also holds text before it, or its first characters "
                f"({text[begin : begin + 8]!r}) change the tokens of the prompt, so it could not "
                "be generated as it is learnt; begin it with a word"
            )
        return first

    def _tokens_of(self, header: str) -> list[int]:
        """The tokens of what stands before an answer, by itself. It begins with a control token."""
        known = self._headers.get(header)
        if known is None:
            known = self._backend.encode(header, add_special_tokens=False).ids
            if len(header) < SHORT and len(self._headers) < MANY:
                self._headers[header] = known
        return known

    def _end(self, text: str, encoding: Encoding, ids: Sequence[int], span: Span) -> int:
        """One past the token that ends the turn: the first control token after the answer."""
        token = _token_at(encoding, span.end, len(text))
        while token is not None and token < len(ids) and ids[token] not in self.control:
            if text[span.end : _characters(encoding, token).end].strip():
                token = None
                break
            token += 1
        if token is None or token >= len(ids):
            raise NotLocated(
                "its turn does not end in a single token of its own, so the model could not learn "
                "to stop"
            )
        if self.shape is not None and ids[token] not in self.shape.ends:
            raise NotLocated(f"its turn ends in token {ids[token]}, as no other one does")
        return token + 1


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the fast tokenizer that adds, cuts and pads nothing.

    The file may still hold padding or truncation of somebody's batch. Its post-processor may move
    the places of tokens, which are needed as they are.
    """
    from tokenizers import Tokenizer
    from tokenizers.processors import Sequence as Steps

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = Steps([])
    return backend


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens: those that speak to the model. The unknown token is what text becomes."""
    ids = set(tokenizer.all_special_ids)
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            ids.add(token)
    if tokenizer.unk_token_id != tokenizer.eos_token_id:
        ids.discard(tokenizer.unk_token_id)
    return frozenset(ids)


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens, and tags in angle brackets that a tokenizer knows as one token.

    Some tokenizers do not call their own ends of turns special.
    """
    ids = set(special_ids(tokenizer))
    for token, added in tokenizer.added_tokens_decoder.items():
        tag = added.content.startswith("<") and added.content.endswith(">")
        if tag and token != tokenizer.unk_token_id:
            ids.add(token)
    return frozenset(ids)


def text_of_tokens(tokenizer: PreTrainedTokenizerBase, tokens: frozenset[int]) -> re.Pattern[str]:
    """A pattern that finds any of these added tokens written out in a text."""
    written = []
    for token, added in tokenizer.added_tokens_decoder.items():
        if token in tokens and added.content:
            written.append(re.escape(added.content))
    # Longer ones first: one may begin as another does.
    written.sort(key=len, reverse=True)
    return re.compile("|".join(written) or MATCHES_NOTHING)


def _answered(chat: Chat) -> bool:
    """Whether a chat ends with an answer."""
    return bool(chat) and chat[-1]["role"] == "assistant"


def _check_others(text: str, chat: Chat) -> None:
    """Raise NotLocated if a message is not in the text."""
    for number, message in enumerate(chat):
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise NotLocated(
                f"the template leaves out message {number} ({message['role']}), or changes it"
            )


def _characters(encoding: Encoding, token: int) -> Span:
    """The characters that a token holds. A token that a tokenizer put in by itself holds none."""
    return Span(*(encoding.token_to_chars(token) or (0, 0)))


def _token_at(encoding: Encoding, position: int, length: int) -> int | None:
    """The first token that holds the character at `position` or one after it."""
    while position < length:
        token: int | None = encoding.char_to_token(position)
        if token is not None:
            return token
        position += 1
    return None
