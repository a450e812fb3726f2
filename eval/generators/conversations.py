"""Many conversations at once: each in its own turn order, none waiting for another's turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mosaic.core.types.evaluation import Prompt, Response

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Turn:
    """One answer: its text, why it ended, new tokens with the end of turn."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int


Ask = Callable[[str, Chat], Awaitable[Turn]]
"""(prompt id, chat up to the user's turn) -> the model's answer."""


async def replay(
    prompts: Sequence[Prompt],
    ask: Ask,
    concurrency: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Response]:
    """One response per prompt, in order; call k of a conversation sees k user turns and the model's own k-1 answers.

    At most `concurrency` conversations are open. Those with most turns start first, so that no long one is left to run
    alone. The first error ends all of them and is raised.
    """
    slots = asyncio.Semaphore(concurrency)
    total, done = sum(len(p.turns) for p in prompts), 0

    async def one(prompt: Prompt) -> Response:
        nonlocal done
        chat: Chat = [{"role": "system", "content": prompt.system}] if prompt.system else []
        turns: list[Turn] = []
        async with slots:
            for text in prompt.turns:
                chat.append({"role": "user", "content": text})
                turns.append(await ask(prompt.id, list(chat)))
                chat.append({"role": "assistant", "content": turns[-1].text})
                done += 1
                if progress:
                    progress(done, total)
        return Response(
            id=prompt.id,
            answers=[t.text for t in turns],
            finish_reasons=[t.finish_reason for t in turns],
            n_tokens=sum(t.tokens for t in turns),
        )

    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].turns), i))
    tasks = {i: asyncio.create_task(one(prompts[i])) for i in order}
    try:
        await asyncio.gather(*tasks.values())
    except BaseException:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        raise
    return [tasks[i].result() for i in range(len(prompts))]
