"""Many conversations at once: each takes its turns in order, and none waits for another's turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.generators.draws import AnswerId
from eval.rendering.render import Chat as Chat
from mosaic.core.types.evaluation import Prompt, Response

FinishReason = Literal["stop", "length"]
Progress = Callable[[int, int], None]
"""(answers so far, answers in all)"""


@dataclass(frozen=True)
class Turn:
    """One answer: its text, why it ended, and the number of new tokens with the end of turn."""

    text: str
    finish_reason: FinishReason
    tokens: int


Ask = Callable[[AnswerId, Chat], Awaitable[Turn]]
"""(which answer, chat up to the user's turn) -> the model's answer."""


class Conversation:
    """One sample of one prompt, as far as it has come."""

    def __init__(self, prompt: Prompt, sample: int) -> None:
        self.prompt = prompt
        self.sample = sample
        self.chat: Chat = []
        self.turns: list[Turn] = []
        if prompt.system:
            self.chat.append({"role": "system", "content": prompt.system})

    def next_question(self) -> AnswerId:
        """Put the next user turn into the chat, and say which answer is wanted."""
        turn = len(self.turns)
        self.chat.append({"role": "user", "content": self.prompt.turns[turn]})
        return AnswerId(self.prompt.id, self.sample, turn)

    def add(self, turn: Turn) -> None:
        self.turns.append(turn)
        self.chat.append({"role": "assistant", "content": turn.text})

    def response(self) -> Response:
        return Response(
            id=self.prompt.id,
            answers=[t.text for t in self.turns],
            finish_reasons=[t.finish_reason for t in self.turns],
            n_tokens=sum(t.tokens for t in self.turns),
        )


def open_conversations(prompts: Sequence[Prompt], n: int) -> list[Conversation]:
    """`n` conversations per prompt: all of the first prompt, then all of the second, and so on."""
    return [Conversation(prompt, sample) for prompt in prompts for sample in range(n)]


async def replay(
    prompts: Sequence[Prompt],
    ask: Ask,
    concurrency: int,
    progress: Progress | None = None,
    n: int = 1,
) -> list[Response]:
    """`n` responses per prompt, in order.

    Call k of a conversation sees k user turns and its own k-1 answers.

    At most `concurrency` conversations are open. Those with most turns start first, so that no long
    one is left to run alone. The first error ends all of them and is raised.
    """
    slots = asyncio.Semaphore(concurrency)
    conversations = open_conversations(prompts, n)
    total, done = sum(len(c.prompt.turns) for c in conversations), 0

    async def hold(conversation: Conversation) -> None:
        nonlocal done
        async with slots:
            for _ in conversation.prompt.turns:
                wanted = conversation.next_question()
                conversation.add(await ask(wanted, list(conversation.chat)))
                done += 1
                if progress:
                    progress(done, total)

    longest_first = sorted(conversations, key=lambda c: -len(c.prompt.turns))
    tasks = [asyncio.create_task(hold(c)) for c in longest_first]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return [c.response() for c in conversations]
