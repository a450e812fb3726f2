"""The language-model judge: every item answered yes or no under a schema, at temperature 0.

It judges the answer side only. Prompt-side items (pressure, concealment, boundary cues) are fixed
in the suite, and instruction following is checked by code (`eval.ifeval`), whatever judge is
chosen. What the model cannot decide, refuses or garbles is `abstained` or `failed`, never a number.
The text to be judged stands in an envelope that it cannot close.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from eval.chat.client import Attempt, BadReply, ChatModel, ChatUnavailable, Completion, JsonMapping
from eval.chat.strict_json import Invalid, NotStrict
from eval.chat.unwrap import parse_unwrapped
from eval.judges.asking import Asking
from eval.judges.base import AnswerQuestions, LlmJudgeConfig
from eval.judges.by_code import check_answers
from eval.judges.items import UNCLEAR, VALUES, ItemSet, items_of, reply_model
from eval.judges.rehearsal import rehearse
from eval.judges.verdicts import Items, Question, VerdictEntry, unique, verdict_of
from eval.objectives.base import Objective, by_code
from mosaic.core.types.base import JsonObject, digest_of
from mosaic.core.types.calls import Exchange
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Verdict
from prompts.envelope import capped, wrap
from prompts.load import load

VERSION = 1
MAX_EXPLANATION = 600
PROBE = [{"role": "user", "content": "Answer with the word yes."}]
PROBE_TOKENS = 16

Reply = dict[str, dict[str, str]]
"""channel -> item -> yes, no, none, some, most or cannot_tell"""


class LlmJudge:
    """Judges by a chat model.

    Safe to share between threads; asks `concurrency` conversations at once.
    """

    def __init__(self, config: LlmJudgeConfig, chat: ChatModel | None = None) -> None:
        self.config = config
        self.chat = chat or ChatModel(config.chat)
        self.identity = digest_of(_identity(config))
        frame = [load("judge_frame").digest, load("judge_repair").digest]
        self.digest = digest_of({"model": self.identity, "frame": frame})

    def question(self, objective: Objective, prompt: Prompt, response: Response) -> Question:
        """The conversation of a prompt and its answers. ValueError if they do not fit together."""
        if prompt.id != response.id or len(prompt.turns) != len(response.answers):
            raise ValueError(f"response {response.id} does not answer prompt {prompt.id}")
        messages = [Message(role="system", content=prompt.system)] if prompt.system else []
        for turn, answer in zip(prompt.turns, response.answers, strict=True):
            messages.append(Message(role="user", content=turn))
            messages.append(Message(role="assistant", content=answer))
        return self.ask_about(items_of(objective, "answers"), messages)

    def ask_about(self, items: ItemSet, messages: Sequence[Message]) -> Question:
        return Question(items, tuple(messages), self.identity)

    def judgment(self, objective: Objective, prompt: Prompt, verdict: Verdict) -> Judgment:
        """The stored L3 of one verdict: its items, beside the prompt-side items of the suite."""
        if verdict.status != "ok":
            return Judgment(
                id=prompt.id, status=verdict.status, reason=verdict.reason, judge=self.digest
            )
        line = objective.stored(prompt, verdict.items)
        return Judgment(id=prompt.id, status="ok", items=line, judge=self.digest)

    def judge(
        self, objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """One judgment per prompt, asked afresh. Raises ChatUnavailable if the endpoint is down."""
        return self.judge_with(self.ask_afresh, objective, prompts, responses)

    def unscorable(self, objective: Objective, prompt: Prompt) -> str | None:
        """See `SuiteJudge`. A verdict stands in for the model's: every item at its least."""

        def judged(response: Response) -> Judgment:
            if by_code(objective):
                return check_answers(objective, [prompt], [response])[0]
            least = {c.name: dict.fromkeys(c.ranges, 0) for c in objective.answers}
            return self.judgment(objective, prompt, Verdict(status="ok", items=least))

        return rehearse(objective, prompt, judged)

    def judge_with(
        self,
        answer: AnswerQuestions,
        objective: Objective,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
    ) -> list[Judgment]:
        """One judgment per prompt, the verdicts coming from `answer`.

        Objectives that are checked by code ask nothing.
        """
        if by_code(objective):
            return check_answers(objective, prompts, responses)
        questions = [
            self.question(objective, p, r) for p, r in zip(prompts, responses, strict=True)
        ]
        verdicts = answer(questions)
        return [
            self.judgment(objective, p, verdicts[q.key])
            for p, q in zip(prompts, questions, strict=True)
        ]

    def ask_afresh(
        self,
        questions: Sequence[Question],
        count: Callable[[VerdictEntry], None] = lambda entry: None,
    ) -> dict[str, Verdict]:
        """The verdict of each question by its key, asked of the model now.

        `count` is given each as it is made.
        """
        verdicts: dict[str, Verdict] = {}
        for entries in self.ask_all(unique(questions)):
            for entry in entries:
                verdicts[entry.question.key] = entry.verdict
                count(entry)
        return verdicts

    def ask_all(
        self, questions: Sequence[Question], stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[list[VerdictEntry]]:
        """Lists of verdicts in the order of completion; an empty list after a second without any.

        Questions that the endpoint does not answer, while it answers something harmless, are
        `failed`. They are held back until another is answered: they may be the beginning of an
        outage. After an outage, or once `stopping` says so, nothing new is begun, and what is under
        way is still handed over. After an outage ChatUnavailable is raised then, with the attempts
        of all questions that it left without a verdict. A caller that leaves the iterator early
        does not wait for what is under way.
        """
        return Asking(self.exchange, self._answers, self.config.concurrency).run(
            questions, stopping
        )

    def _answers(self, attempts: list[Attempt]) -> bool:
        """Whether the endpoint answers something harmless. What that took is added to `attempts`."""
        try:
            attempts += self.chat.complete(PROBE, max_tokens=PROBE_TOKENS, most_attempts=1).attempts
        except BadReply as error:
            attempts += error.attempts
            return not error.strange
        except ChatUnavailable as error:
            attempts += error.attempts
            return False
        return True

    def ask(self, question: Question) -> Verdict:
        """One verdict. See `exchange`."""
        return self.exchange(question)[0]

    def exchange(self, question: Question) -> tuple[Verdict, Exchange]:
        """One verdict, and what was asked and said on the way to it.

        A reply that is not a verdict is asked for again within limits. After that it is data:
        `failed`, or `abstained` if the model refused or cannot tell. Raises ChatUnavailable.
        """
        messages: list[JsonMapping] = [*self.messages(question)]
        said = messages[:]
        attempts: list[Attempt] = []
        verdict = self._verdict(question, messages, said, attempts)
        exchange = Exchange(
            question=question.key,
            messages=self.chat.without_key(said),
            attempts=[attempt.json_data() for attempt in attempts],
        )
        return verdict, exchange

    def _verdict(
        self,
        question: Question,
        messages: list[JsonMapping],
        said: list[JsonMapping],
        attempts: list[Attempt],
    ) -> Verdict:
        """The verdict; what is said by whom is added to `said`, each attempt to `attempts`."""
        model = reply_model(question.items)
        schema = model.model_json_schema()
        for repairs_left in reversed(range(self.config.max_repairs + 1)):
            try:
                completion = self.chat.complete(messages, schema=schema)
            except BadReply as error:
                attempts += error.attempts
                said += error.told
                if error.strange:  # not the model's words: it may be so for every question
                    raise ChatUnavailable(str(error), attempts) from None
                return _no_verdict(error, attempts)
            except ChatUnavailable as error:
                error.attempts = [*attempts, *error.attempts]
                raise
            attempts += completion.attempts
            said += [*completion.told, _answer(completion)]
            try:
                reply = parse_unwrapped(completion.text, model).model_dump()
            except (NotStrict, Invalid) as error:
                if repairs_left:
                    repair = _repair(completion, error)
                    messages = [*messages, *repair]
                    said += repair[1:]
                continue
            explanation = capped(reply.pop("reason"), MAX_EXPLANATION)
            return _typed_verdict(reply, explanation, attempts)
        return verdict_of(attempts, "failed", "the judge's reply: invalid")

    def messages(self, question: Question) -> list[dict[str, str]]:
        """What the model is sent.

        The delimiter follows from the conversation, so that the same question is the same request.
        It is drawn again until no turn contains it.
        """
        mark = _delimiter(question)
        blocks, turn = [], 0
        for message in question.messages:
            turn += message.role == "user"
            source = "system" if message.role == "system" else f"{message.role} turn {turn}"
            blocks.append(wrap(message.content, mark, source))
        frame = load("judge_frame").fill(mark=mark, conversation="\n".join(blocks))
        return [
            {"role": "system", "content": question.items.words.fill()},
            {"role": "user", "content": frame},
        ]


def _identity(config: LlmJudgeConfig) -> JsonObject:
    """What tells one model judge from another. Without a revision the address stands in for it."""
    chat = config.chat
    which: JsonObject = (
        {"revision": config.revision} if config.revision else {"address": chat.base_url}
    )
    identity: JsonObject = {
        "judge": "llm",
        "version": VERSION,
        "model": chat.model,
        **which,
        "seed": chat.seed,
        "temperature": chat.temperature,
        "max_tokens": chat.max_tokens,
        "structured": chat.structured,
    }
    if chat.extra_body:
        identity["extra_body"] = chat.extra_body
    if chat.max_tokens_field is None:
        identity["max_tokens"] = None
    return identity


def _delimiter(question: Question) -> str:
    """Sixteen hexadecimal digits that stand in no turn of the conversation."""
    number = 0
    while True:
        mark = hashlib.sha256(f"{question.key}:{number}".encode()).hexdigest()[:16]
        if not any(mark in message.content for message in question.messages):
            return mark
        number += 1


def _answer(completion: Completion) -> JsonMapping:
    """What the model said, as it came."""
    return completion.message or {"role": "assistant", "content": completion.text}


def _repair(completion: Completion, error: NotStrict | Invalid) -> list[JsonMapping]:
    """Messages that show a reply to its author, and say what is wrong with it."""
    problems = error.problems if isinstance(error, Invalid) else [str(error)]
    lines = "\n".join(f"- {problem}" for problem in problems)
    return [
        _answer(completion),
        {"role": "user", "content": load("judge_repair").fill(problems=lines)},
    ]


def _no_verdict(error: BadReply, attempts: Sequence[Attempt]) -> Verdict:
    """A conversation that the endpoint answers, but never with a verdict."""
    reason = f"the judge's reply: {error.kind}"
    if error.refusal or error.said:
        reason += f": {error.refusal or error.said}"
    return verdict_of(attempts, "abstained" if error.kind == "refused" else "failed", reason)


def _typed_verdict(reply: Reply, explanation: str, attempts: Sequence[Attempt]) -> Verdict:
    """The items of a valid reply as numbers.

    One item that the model cannot tell makes the whole verdict abstain.
    """
    unclear = []
    for channel, values in reply.items():
        unclear += [f"{channel}.{item}" for item, value in values.items() if value == UNCLEAR]
    if unclear:
        reason = f"the judge cannot tell {', '.join(unclear)}"
        return verdict_of(attempts, "abstained", reason, explanation)
    items: Items = {}
    for channel, values in reply.items():
        items[channel] = {item: VALUES[value] for item, value in values.items()}
    return verdict_of(attempts, "ok", "", explanation, items)
