"""Generation by vLLM: one server, adapters loaded at run time, hundreds of conversations in flight.

The base and several candidates share a server; a request picks its model by name. An adapter's name
and folder are digests of its files, so that nothing cached for one can be taken for another. After
each load the adapter probe compares the server with PEFT before any answer counts. A server that
dies is started again, and every conversation goes on where it stood.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from math import isfinite
from pathlib import Path

from eval.generators.adapter_probe import (
    TOKENS,
    AdapterProbe,
    Continuation,
    ProbeError,
)
from eval.generators.base import TextLikelihood, VllmGeneratorConfig
from eval.generators.conversations import Chat, replay
from eval.generators.vllm_adapters import adapter_digest, check_adapter_recipe, copy_adapter
from eval.generators.vllm_api import ServerGone, generation_settings, shaped
from eval.generators.vllm_server import MAX_CPU_LORAS, AttachedServer, OwnServer, Server
from eval.generators.vllm_session import Session
from eval.model_loading import PLAIN, Loading
from eval.rendering.ends import stop_ids
from eval.rendering.tokenizer import template_file
from mosaic.core.errors import BoundaryError, UsageError
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.runs import GREEDY, Sampling


class VllmGenerator:
    """Answers with a base model folder served by vLLM.

    `max_lora_rank` bounds the adapters that can be loaded.

    `folder` takes the server's log and copies of the adapters that it serves; the copies go with
    `close`.
    """

    def __init__(
        self,
        base_model: Path,
        config: VllmGeneratorConfig,
        max_lora_rank: int,
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
        template: Path | None = None,
        loading: Loading = PLAIN,
    ) -> None:
        self.base_model = base_model
        self.config = config
        self.max_lora_rank = max_lora_rank
        self.folder = folder
        self.progress = progress
        self.say = say or (lambda text: None)
        self.server: Server = (
            AttachedServer(config)
            if config.base_url
            else OwnServer(
                base_model,
                config,
                max_lora_rank,
                folder,
                self.say,
                self._write_template,
                loading.four_bit,
            )
        )
        # Names of the loaded adapters, the oldest first.
        self._loaded: dict[str, None] = {}
        self._adapter_probe = AdapterProbe(base_model, config.dtype, template, loading)
        # Whether the probe has seen the base of the server that answers now.
        self._base_checked = False

    def generate(
        self, prompts: Sequence[Prompt], adapter: Path | None, sampling: Sampling = GREEDY
    ) -> list[Response]:
        """See `Generator`.

        Each drawn answer is a request with a seed of its own, which follows from `sampling.seed`,
        the prompt's id, the number of the sample and the turn. The same request draws the same
        answer on the same server, up to rounding: vLLM's batches differ from call to call, and with
        them the last digits of its logits.

        Raises UsageError for a prompt that does not fit, ProbeError if another model answers, and
        BoundaryError if the server keeps dying.
        """

        async def run() -> list[Response]:
            async with Session(self, adapter, sampling) as session:
                return await replay(
                    prompts, session.ask, self.config.concurrency, self.progress, sampling.n
                )

        self._serve_first(adapter)
        return asyncio.run(run())

    @cached_property
    def stops(self) -> list[int]:
        """Tokens that end an answer."""
        return stop_ids(self.base_model, self._adapter_probe.tokenizer)

    def _write_template(self) -> Path | None:
        """The file of the chat template that a server must use; None if it is the base's own."""
        return template_file(self.base_model, self._adapter_probe.tokenizer, self.folder)

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[TextLikelihood]:
        """See `Generator`; by the server's prompt log-probabilities."""
        encoded = self._adapter_probe.tokenizer(list(texts), add_special_tokens=True)["input_ids"]
        rows = [list(ids) for ids in encoded]
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) < 2:
                raise UsageError(
                    f"{text[:40]!r} is a single token; a likelihood needs at least two"
                )

        async def run() -> list[TextLikelihood]:
            async with Session(self, adapter) as session:
                return list(await asyncio.gather(*map(session.read, rows)))

        self._serve_first(adapter)
        return asyncio.run(run())

    def _serve_first(self, adapter: Path | None) -> None:
        """Start and load outside of the event loop, where Ctrl-C ends a long start at once."""
        if self.config.base_url:
            # Since the last call its owner may have started it again with another base.
            self._base_checked = False
        with suppress(ServerGone):  # then the session begins with a restart
            self.serve(adapter)

    def release(self) -> None:
        """With `memory: stop` the server ends, so that training has the device to itself."""
        if self.config.memory == "stop":
            self.server.stop()

    def close(self) -> None:
        """End the server and remove the copies of adapters. An attached one stays, without our adapters."""
        atexit.unregister(self.close)
        if self.config.base_url:
            for name in self._loaded:
                try:
                    self.server.unload(name)
                except BoundaryError as error:
                    self.say(f"vLLM: {name} could not be unloaded: {error}")
        self._loaded.clear()
        self.server.stop()
        self._adapter_probe.close()
        shutil.rmtree(self.folder / "adapters", ignore_errors=True)

    def serve(self, adapter: Path | None) -> str:
        """Make server and adapter ready and probe them. Returns the model's name for requests.

        Costs nothing if they are ready already.
        """
        # For callers that forget to close; registered once, however often this is called.
        atexit.unregister(self.close)
        atexit.register(self.close)
        if self.server.ready():
            self.forget()
        if not self._base_checked:
            self._check_base()
            self._base_checked = True
        if adapter is None:
            return self.server.base
        name = f"adapter-{adapter_digest(adapter)[:32]}"
        if name not in self._loaded:
            self._load(name, adapter)
        return name

    def _check_base(self) -> None:
        """Probe the base that answers. An attached server is told how to render as we do."""
        try:
            self._adapter_probe.check_base(self._continue_prompts([self.server.base])[0])
        except ProbeError as error:
            needed = self._write_template() if self.config.base_url else None
            if error.mismatch != "rendering" or needed is None:
                raise
            raise ProbeError(
                f"{error}; start it with `--chat-template {needed}`", "rendering"
            ) from None

    def forget(self) -> None:
        """Another process may answer from here on: what was loaded or checked does not count any more."""
        self._loaded.clear()
        self._base_checked = False

    def _load(self, name: str, adapter: Path) -> None:
        """Register an adapter under its name and probe it.

        The oldest one goes if the server has no room.
        """
        check_adapter_recipe(adapter, self.max_lora_rank)
        copy = (self.folder / "adapters" / name).resolve()
        copy_adapter(adapter, copy)
        if len(self._loaded) >= MAX_CPU_LORAS:
            oldest = next(iter(self._loaded))
            self.server.unload(oldest)
            del self._loaded[oldest]
        self.server.load(name, copy)
        served, base_served = self._continue_prompts([name, self.server.base])
        result = self._adapter_probe.check_adapter(adapter, name, served, base_served)
        self._loaded[name] = None
        note = (
            "" if result.distinct else "; on its prompts the adapter hardly differs from the base"
        )
        self.say(
            f"vLLM: {name} loaded, {result.error:.4f} nats from PEFT on the adapter probe{note}"
        )

    def _continue_prompts(self, names: Sequence[str]) -> list[list[Continuation]]:
        """The probe's prompts, continued by each model, all at once, so that they share a batch."""
        # By turns: on a busy machine the first requests end before the last ones arrive.
        chats = [chat for chat, _ in self._adapter_probe.prompts]
        jobs = [(name, chat) for chat in chats for name in names]
        with ThreadPoolExecutor(len(jobs)) as threads:
            served = list(threads.map(lambda job: self._continue(*job), jobs))
        return [served[i :: len(names)] for i in range(len(names))]

    def _continue(self, name: str, chat: Chat) -> Continuation:
        """One greedy continuation with its log-probabilities.

        BoundaryError for a reply without them.
        """
        body = {
            **generation_settings(TOKENS, self.stops, GREEDY, None),
            "model": name,
            "messages": chat,
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
        }
        answer = self.server.call("/chat/completions", body)
        with shaped(self.server.url, "/chat/completions"):
            choice = answer["choices"][0]
            if choice.get("token_ids") is None or answer.get("prompt_token_ids") is None:
                raise BoundaryError(
                    "the server gives no token ids, which the adapter probe needs; "
                    "use vLLM 0.31 or newer"
                )
            values = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
            tokens = [int(token) for token in choice["token_ids"]][: len(values)]
            # A comparison of nothing, or of NaN, would find no fault.
            if not values or not all(map(isfinite, values)) or len(tokens) < len(values):
                raise ValueError
            prompt = [int(token) for token in answer["prompt_token_ids"]]
            return Continuation(prompt, tokens, values)
