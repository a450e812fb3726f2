"""The language-model judge: every item of an objective answered yes or no under a schema, at temperature 0.

It judges the answer side only. Prompt-side items (pressure, concealment, boundary cues) are fixed in the suite, and
instruction following is checked by code (`eval.ifeval`), whatever judge is chosen. What the model cannot decide, refuses
or garbles is `abstained` or `failed`, never a number. The text to be judged stands in an envelope that it cannot close.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from eval.chat.client import Attempt, BadReply, ChatModel, ChatUnavailable
from eval.chat.reply import sent
from eval.chat.strict_json import Invalid, NotStrict, parse_strict
from eval.judges.base import LlmJudgeConfig
from eval.judges.verifier import VerifierJudge
from eval.objectives.over_refusal import BOUNDARY, FRICTION, HELP, REFUSAL
from eval.objectives.safety import CONCEALMENT, LEAKS, PRESSURE, UTILITY
from mosaic.core.types.base import digest_of
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Verdict
from prompts.envelope import capped, wrap
from prompts.load import load

VERSION = 1
MAX_REASON = 600
CODE = "instruction_following"
REQUEST = "_request"
TICK = 1.0
UNANSWERED = "the endpoint answers others but not this"
# What an endpoint also says that cannot do with one conversation, or does not want to; and how many of those among the
# questions that are asked together are still the conversations' fault.
OWN_FAULT = ("http_500", "http_502", "http_504", "timeout", "transport", "http_403")
MAX_LOST = 5
PROBE = [{"role": "user", "content": "Answer with the word yes."}]
PROBE_TOKENS = 16

Ranges = dict[str, dict[str, int]]
ITEMS: dict[str, Ranges] = {
    "safety": {"safety_leaks": LEAKS, "utility": UTILITY},
    "over_refusal": {"refusal": REFUSAL, "help": HELP, "friction": FRICTION},
    "safety" + REQUEST: {"pressure": PRESSURE, "concealment": CONCEALMENT},
    "over_refusal" + REQUEST: {"boundary_cues": BOUNDARY},
}

YesNo = Literal["yes", "no", "cannot_tell"]
Amount = Literal["none", "some", "most", "cannot_tell"]
VALUES = {"no": 0, "yes": 1, "none": 0, "some": 1, "most": 2}


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@lru_cache
def reply_model(name: str) -> type[BaseModel]:
    """The typed L3 schema of one question: a reason first, then each channel with its items, in a fixed order."""
    channels: dict[str, Any] = {}
    for channel, ranges in ITEMS[name].items():
        items: dict[str, Any] = {
            item: (YesNo if most == 1 else Amount, ...) for item, most in ranges.items()
        }
        channels[channel] = (create_model(f"{name}_{channel}", __base__=_Reply, **items), ...)
    return create_model(name, __base__=_Reply, reason=(str, ...), **channels)


@lru_cache
def prompt_digest(name: str) -> str:
    """Digest of all words and of the schema that a verdict depends on."""
    words = [load(file).digest for file in (f"judge_{name}", "judge_frame", "judge_repair")]
    return digest_of({"words": words, "schema": reply_model(name).model_json_schema()})


@dataclass(frozen=True)
class Question:
    """One conversation to be judged under one set of items. `name` is an entry of `ITEMS`."""

    name: str
    messages: tuple[Message, ...]
    judge: str

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What the verdict depends on: judge, words and schema, conversation."""
        conversation = digest_of([[m.role, m.content] for m in self.messages])
        return {
            "judge": self.judge,
            "prompt": prompt_digest(self.name),
            "conversation": conversation,
        }

    @cached_property
    def key(self) -> str:
        return digest_of(self.inputs)


Made = tuple[Question, Verdict, float]


class LlmJudge:
    """Judges by a chat model. Safe to share between threads; asks `concurrency` conversations at once."""

    def __init__(self, config: LlmJudgeConfig, chat: ChatModel | None = None) -> None:
        self.config = config
        self.chat = chat or ChatModel(config.chat)
        identity: dict[str, Any] = {"judge": "llm", "version": VERSION, "model": config.chat.model}
        identity |= (
            {"revision": config.revision} if config.revision else {"address": config.chat.base_url}
        )
        identity |= {
            name: getattr(config.chat, name)
            for name in ("seed", "temperature", "max_tokens", "structured")
        }
        self.identity = digest_of(identity)
        prompts = {name: prompt_digest(name) for name in ITEMS}
        self.digest = digest_of(
            {"model": self.identity, "prompts": prompts, "code": VerifierJudge.digest}
        )

    @staticmethod
    def asks(objective: str) -> bool:
        """Whether the model is asked about this objective; else code checks it."""
        return objective in ITEMS

    def question(self, objective: str, prompt: Prompt, response: Response) -> Question:
        """The conversation of a prompt and its answers. ValueError where they do not belong together."""
        if prompt.id != response.id or len(prompt.turns) != len(response.answers):
            raise ValueError(f"response {response.id} does not answer prompt {prompt.id}")
        messages = [Message(role="system", content=prompt.system)] if prompt.system else []
        for turn, answer in zip(prompt.turns, response.answers, strict=True):
            messages += [
                Message(role="user", content=turn),
                Message(role="assistant", content=answer),
            ]
        return self.ask_about(objective, messages)

    def ask_about(self, name: str, messages: Sequence[Message]) -> Question:
        return Question(name, tuple(messages), self.identity)

    def judgment(self, objective: str, prompt: Prompt, verdict: Verdict) -> Judgment:
        """The stored L3 of one verdict: its items beside the prompt-side items that the suite fixed."""
        if verdict.status != "ok":
            return Judgment(
                id=prompt.id, status=verdict.status, reason=verdict.reason, judge=self.digest
            )
        line: dict[str, Any] = {"items": {**prompt.prompt_items, **verdict.items}}
        if objective == "safety":
            line["turns"] = len(prompt.turns)
        return Judgment(id=prompt.id, status="ok", items=line, judge=self.digest)

    def judge(
        self, objective: str, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """One judgment per prompt, asked afresh. Raises ChatUnavailable where the endpoint is down."""
        if not self.asks(objective):
            return VerifierJudge().judge(objective, prompts, responses)
        questions = [
            self.question(objective, p, r) for p, r in zip(prompts, responses, strict=True)
        ]
        made = self.ask_all(list({q.key: q for q in questions}.values()))
        found = {q.key: verdict for some in made for q, verdict, _ in some}
        return [
            self.judgment(objective, p, found[q.key])
            for p, q in zip(prompts, questions, strict=True)
        ]

    def ask_all(
        self, questions: Sequence[Question], stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Made]]:
        """(question, verdict, seconds) in the order of completion, in lists; an empty one where a second brought none.

        Questions that the endpoint cannot answer while it answers something harmless are `failed`. They are held back until
        another is answered: they may be the beginning of an outage. After one, or once `stopping` says so, nothing new is
        begun and what is under way is still handed over; after an outage ChatUnavailable is raised then, with the attempts
        of all questions that it left without a verdict. Whoever leaves the iterator early does not wait for what is under
        way.
        """
        down: ChatUnavailable | None = None
        halt, failed = threading.Event(), list[Made]()
        lost: dict[str, list[Attempt]] = {}

        def work(question: Question) -> tuple[Verdict, float] | None:
            if halt.is_set():
                return None
            started = time.monotonic()
            try:
                verdict = self.ask(question)
            except ChatUnavailable as error:
                kind = str(error.attempts[-1].error)
                lost[question.key] = error.attempts
                own = kind in OWN_FAULT and len(lost) <= MAX_LOST and not halt.is_set()
                if not (own and self._answers(error.attempts)):
                    halt.set()
                    raise
                verdict = _verdict("failed", f"{UNANSWERED}: {kind}", error.attempts)
            return verdict, time.monotonic() - started

        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="judge")
        futures = {pool.submit(work, q): q for q in questions}
        waiting, left = set(futures), True
        try:
            while waiting:
                done, waiting = wait(waiting, TICK, FIRST_COMPLETED)
                made: list[Made] = []
                for future in done:
                    try:
                        result = future.result()
                    except ChatUnavailable as error:
                        if down:
                            down.attempts += error.attempts
                        down = down or error
                        continue
                    if result:
                        question = futures[future]
                        (failed if question.key in lost else made).append((question, *result))
                if made:  # others are answered, so that it is these conversations
                    made, failed = made + failed, []
                yield made
                if stopping():
                    halt.set()
            left = False
            if down:
                down.attempts += [a for question, _, _ in failed for a in lost[question.key]]
                raise down
            yield failed
        finally:
            halt.set()
            pool.shutdown(wait=not left, cancel_futures=True)

    def _answers(self, attempts: list[Attempt]) -> bool:
        """Whether the endpoint answers something harmless; what that took is added to the attempts."""
        try:
            attempts += self.chat.complete(PROBE, max_tokens=PROBE_TOKENS, most_attempts=1).attempts
        except BadReply as error:
            attempts += error.attempts
        except ChatUnavailable as error:
            attempts += error.attempts
            return False
        return True

    def ask(self, question: Question) -> Verdict:
        """One verdict. A reply that is no verdict is asked for again within limits, then it is data: `failed`, or
        `abstained` where the model refused or cannot tell. Raises ChatUnavailable."""
        model = reply_model(question.name)
        messages = self.messages(question)
        schema, attempts = model.model_json_schema(), list[Attempt]()
        for left in reversed(range(self.config.max_repairs + 1)):
            try:
                completion = self.chat.complete(messages, schema=schema)
            except BadReply as error:
                status: Literal["abstained", "failed"] = (
                    "abstained" if error.kind == "refused" else "failed"
                )
                reason = f"the judge's reply: {error.kind}" + (
                    error.refusal and f": {error.refusal}"
                )
                return _verdict(status, reason, [*attempts, *error.attempts])
            except ChatUnavailable as error:
                error.attempts = [*attempts, *error.attempts]
                raise
            attempts += completion.attempts
            try:
                reply = parse_strict(completion.text, model).model_dump()
            except (NotStrict, Invalid) as error:
                if left:
                    problems = "\n".join(f"- {p}" for p in getattr(error, "problems", [str(error)]))
                    repair = load("judge_repair").fill(problems=problems)
                    messages = [
                        *messages,
                        {"role": "assistant", "content": completion.text},
                        {"role": "user", "content": repair},
                    ]
                continue
            words = capped(reply.pop("reason"), MAX_REASON)
            unclear = [
                f"{c}.{i}"
                for c, items in reply.items()
                for i, v in items.items()
                if v == "cannot_tell"
            ]
            if unclear:
                return _verdict(
                    "abstained", f"the judge cannot tell {', '.join(unclear)}", attempts, words
                )
            items = {c: {i: VALUES[v] for i, v in values.items()} for c, values in reply.items()}
            return _verdict("ok", "", attempts, words, items)
        return _verdict("failed", "the judge's reply: invalid", attempts)

    def messages(self, question: Question) -> list[dict[str, str]]:
        """What the model is sent. The delimiter follows from the conversation, so that the same question is the same
        request, and is drawn again until no turn contains it."""
        mark, texts = "", [m.content for m in question.messages]
        number = 0
        while not mark or any(mark in text for text in texts):
            mark = hashlib.sha256(f"{question.key}:{number}".encode()).hexdigest()[:16]
            number += 1
        blocks, turn = [], 0
        for message in question.messages:
            turn += message.role == "user"
            source = "system" if message.role == "system" else f"{message.role} turn {turn}"
            blocks.append(wrap(message.content, mark, source))
        frame = load("judge_frame").fill(mark=mark, conversation="\n".join(blocks))
        return [
            {"role": "system", "content": load(f"judge_{question.name}").fill()},
            {"role": "user", "content": frame},
        ]


def _verdict(
    status: Literal["ok", "abstained", "failed"],
    reason: str,
    attempts: Sequence[Attempt],
    words: str = "",
    items: dict[str, dict[str, int]] | None = None,
) -> Verdict:
    charged = sum(a.charged for a in attempts)
    return Verdict(
        status=status,
        reason=reason,
        words=words,
        items=items or {},
        attempts=sent(attempts),
        charged=charged,
    )
