"""One call of the vLLM generator: requests that survive the death of the server's process.

Every conversation goes on where it stood. An attached server, which is not ours to start, is asked
again for a while before it counts as dead.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.chat.http import AsyncHttp
from eval.chat.reply import Fault, quoted
from eval.generators.base import TextLikelihood
from eval.generators.conversations import Chat, Turn
from eval.generators.draws import AnswerId
from eval.generators.vllm_api import (
    ServerGone,
    decoded,
    generation_settings,
    misfit,
    refusal,
    shaped,
)
from mosaic.core.errors import BoundaryError, MosaicError, UsageError
from mosaic.core.types.runs import GREEDY, Sampling

if TYPE_CHECKING:
    from eval.generators.vllm import VllmGenerator

# How often one call starts the server again.
RESTARTS = 2
# How often one request is sent again over a new connection to a server that lives.
HICCUPS = 3
REQUEST_SECONDS = 900.0
# How often an attached server, which may be busy with others, is asked again, and the seconds
# between.
RETRIES = 4
FIRST_PAUSE, MAX_PAUSE, MAX_RETRY_AFTER = 0.5, 8.0, 60.0
BUSY = (408, 409, 429)


class Session:
    """A client of the server, renewed when the server's process dies.

    `sampling` says how answers are drawn; each has a seed of its own (`AnswerId.seed`), which a
    request that is sent again keeps.
    """

    def __init__(
        self, generator: VllmGenerator, adapter: Path | None, sampling: Sampling = GREEDY
    ) -> None:
        self.generator = generator
        self.adapter = adapter
        self.sampling = sampling
        self.restarts = 0
        self._epoch = 0
        self._lock = asyncio.Lock()
        self._failed: MosaicError | None = None
        self._http: AsyncHttp | None = None
        self._model = ""

    async def __aenter__(self) -> Session:
        try:
            await asyncio.to_thread(self._connect)
        except ServerGone as error:
            await self._recover(self._epoch, str(error))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._disconnect()

    def _connect(self) -> None:
        self._model = self.generator.serve(self.adapter)
        server = self.generator.server
        self._http = AsyncHttp(server.endpoint(server.url))
        self._http.open()

    async def _disconnect(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def ask(self, wanted: AnswerId, chat: Chat) -> Turn:
        """One answer.

        BoundaryError if the server ends it for another reason than its length or an end of turn.
        """
        body = {
            **self._settings(self.generator.config.max_new_tokens, wanted.seed(self.sampling)),
            "messages": chat,
        }
        answer = await self.send("/chat/completions", body, wanted.prompt)
        server = self.generator.server
        with shaped(server.url, "/chat/completions"):
            choice = answer["choices"][0]
            reason = choice["finish_reason"]
            if reason not in ("stop", "length"):
                said = quoted(repr(reason), server.key)
                raise BoundaryError(
                    f"{wanted.prompt}: vLLM ended an answer with finish_reason {said}"
                )
            text = (choice["message"]["content"] or "").strip()
            return Turn(text, reason, int(answer["usage"]["completion_tokens"]))

    async def read(self, ids: list[int]) -> TextLikelihood:
        """The likelihood of a text, the first token being given."""
        body = {
            **generation_settings(1, self.generator.stops, GREEDY, None),
            "prompt": ids,
            "prompt_logprobs": 0,
        }
        answer = await self.send("/completions", body, "likelihood")
        with shaped(self.generator.server.url, "/completions"):
            rows = answer["choices"][0]["prompt_logprobs"]
            values = []
            for token, row in zip(ids[1:], rows[1:], strict=True):
                values.append(float(row[str(token)]["logprob"]))
            return TextLikelihood(sum(values) / len(values), len(values))

    def _settings(self, max_tokens: int, seed: int) -> dict[str, object]:
        return generation_settings(max_tokens, self.generator.stops, self.sampling, seed)

    async def send(self, path: str, body: Mapping[str, object], where: str) -> Any:
        """The reply to one request, named `where` in errors.

        It is sent again to the next server if one dies.

        Raises UsageError for a prompt that the server refuses, BoundaryError for other refusals,
        for a reply that is not vLLM's, and if the server keeps dying.
        """
        hiccups = 0
        while True:
            if self._lock.locked():  # a new server is being started
                async with self._lock:
                    pass
            if self._failed is not None:
                raise self._failed
            epoch = self._epoch
            try:
                return decoded(await self._request(path, body))
            except Fault as fault:
                error = self._refused(fault, path, where)
                if error is not None:
                    raise error from None
                hiccups += 1
                dropped = fault.kind in ("connect", "transport")
                if dropped and hiccups <= HICCUPS and await self._healthy():
                    continue  # a dropped connection to a server that lives
                await self._recover(epoch, f"{fault}: {fault.said}" if fault.said else str(fault))

    def _refused(self, fault: Fault, path: str, where: str) -> MosaicError | None:
        """The error for a server that lives and does not take the request.

        None if the server seems to be gone.

        A 404 means that it does not know the model or the adapter: it is not the process that was
        set up.
        """
        server, config = self.generator.server, self.generator.config
        if fault.status == 400:
            said = quoted(fault.said, server.key)
            return UsageError(
                f"prompt {where}: vLLM refuses it ({said}); a chat and generator.max_new_tokens "
                "must fit in generator.max_model_len"
            )
        if fault.status == 404 or (fault.status is not None and fault.status >= 500):
            return None
        if fault.status is not None:
            return refusal(fault.status, path, fault.said, server.key, config)
        return None if fault.down else misfit(server.url, path)

    async def _request(self, path: str, body: Mapping[str, object]) -> bytes:
        """The body of one reply. An attached server is asked again after faults that may pass."""
        retries = 0 if self.generator.config.base_url is None else RETRIES
        attempt = 0
        while True:
            # Another conversation may be renewing the connections.
            http = self._http
            if http is None:
                raise Fault("connect", "the server is being started again")
            try:
                return await http.request(
                    "POST", path, {**body, "model": self._model}, REQUEST_SECONDS
                )
            except Fault as fault:
                if attempt == retries or not _may_pass(fault):
                    raise
                await asyncio.sleep(_pause(attempt, fault.retry_after))
                attempt += 1

    async def _healthy(self) -> bool:
        return await asyncio.to_thread(self.generator.server.healthy)

    async def _recover(self, epoch: int, reason: str) -> None:
        """Start again, once for all conversations that saw the same death."""
        async with self._lock:
            if self._failed is not None:
                raise self._failed
            if epoch != self._epoch:
                return
            try:
                await self._renew(reason)
            except MosaicError as again:
                self._failed = again  # for all who wait: none of them tries once more
                raise
            self._epoch += 1

    async def _renew(self, reason: str) -> None:
        log = self.generator.folder / "server.log"
        said = quoted(reason, self.generator.server.key)
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise BoundaryError(
                f"vLLM died {self.restarts} times in one evaluation; last: {said} (log: {log})"
            )
        self.generator.say(f"vLLM: the server is gone ({said[:100]}); starting it again")
        await self._disconnect()
        try:
            await asyncio.to_thread(self._restart)
        except asyncio.CancelledError:
            # Ctrl-C: the thread that waits for the start ends with the server.
            self.generator.server.give_up()
            raise
        except ServerGone as again:
            raise BoundaryError(
                f"vLLM died again right after it was started: {again} (log: {log})"
            ) from None

    def _restart(self) -> None:
        self.generator.server.stop()
        self.generator.forget()
        self._connect()


def _may_pass(fault: Fault) -> bool:
    """Whether the same request may be answered a little later."""
    if fault.status is not None:
        return fault.status in BUSY or fault.status >= 500
    return fault.down


def _pause(attempt: int, retry_after: float | None) -> float:
    """Seconds before the next attempt: 0.5, 1, 2, 4, less up to a quarter.

    Or what the server asks for, up to a minute.
    """
    if retry_after is not None and 0 < retry_after <= MAX_RETRY_AFTER:
        return retry_after
    return min(FIRST_PAUSE * 2**attempt, MAX_PAUSE) * (1 - 0.25 * random.random())
