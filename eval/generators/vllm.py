"""Generation by vLLM: one server, adapters registered at run time, hundreds of conversations in flight.

The base and several candidates share a server; a request picks its model by name. An adapter's name and folder are
digests of its files, so that nothing cached for one can be taken for another. After each load the canary compares the
server with PEFT before any answer counts. A server that dies is started again and every conversation goes on where it
stood.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from eval.chat.http import is_loopback
from eval.chat.reply import quoted
from eval.generators.adapter_probe import PROMPTS, TOKENS, AdapterProbe, Served
from eval.generators.base import VllmGeneratorConfig
from eval.generators.conversations import Chat, Turn, replay
from eval.generators.vllm_server import (
    MAX_CPU_LORAS,
    AttachedServer,
    OwnServer,
    Server,
    ServerGone,
    misfit,
    refused,
    shaped,
)
from mosaic.core.errors import BoundaryError, MosaicError, UsageError
from mosaic.core.types.evaluation import Prompt, Response

RESTARTS = 2
HICCUPS = 3
REQUEST_SECONDS = 900.0
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PLAIN_RECIPE: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "init_lora_weights": (True, False, "gaussian"),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
}
"""What vLLM's LoRA can express, of what an adapter_config.json may say (vllm/lora/peft_helper.py)."""


class VllmGenerator:
    """Answers with a base model folder served by vLLM. `max_lora_rank` bounds the adapters that can be loaded.

    `folder` takes the server's log and copies of the adapters that it serves; the latter go with `close`.
    """

    def __init__(
        self,
        base_model: Path,
        config: VllmGeneratorConfig,
        max_lora_rank: int,
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
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
            else OwnServer(base_model, config, max_lora_rank, folder, self.say)
        )
        self._loaded: dict[str, None] = {}
        self._canary = AdapterProbe(base_model, config.dtype)
        self._checked = False  # whether the canary has seen the base of the server that answers now
        self._stops = stop_token_ids(base_model)

    def generate(self, prompts: Sequence[Prompt], adapter: Path | None) -> list[Response]:
        """See `Generator`. UsageError for a prompt that does not fit, ProbeError, BoundaryError where it keeps dying."""

        async def run() -> list[Response]:
            async with Session(self, adapter) as session:
                return await replay(prompts, session.ask, self.config.concurrency, self.progress)

        self._serve_first(adapter)
        return asyncio.run(run())

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[float]:
        """See `Generator`; by the server's prompt log-probabilities."""
        rows = [
            list(ids)
            for ids in self._canary.tokenizer(list(texts), add_special_tokens=True)["input_ids"]
        ]
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) < 2:
                raise UsageError(
                    f"{text[:40]!r} is a single token; a likelihood needs at least two"
                )

        async def run() -> list[float]:
            async with Session(self, adapter) as session:
                return list(await asyncio.gather(*(session.read(ids) for ids in rows)))

        self._serve_first(adapter)
        return asyncio.run(run())

    def _serve_first(self, adapter: Path | None) -> None:
        """Start and load outside of the event loop, where Ctrl-C ends a long start at once."""
        if self.config.base_url:
            self._checked = (
                False  # since the last call its owner may have started it again with another base
            )
        with suppress(ServerGone):  # the session begins with a restart then
            self.serve(adapter)

    def release(self) -> None:
        """With `memory: stop` the server ends, so that training has the device to itself."""
        if self.config.memory == "stop":
            self.server.stop()

    def close(self) -> None:
        """End the server (one that was attached to stays, less our adapters) and remove the copies of adapters."""
        atexit.unregister(self.close)
        if self.config.base_url:
            for name in self._loaded:
                try:
                    self.server.unload(name)
                except BoundaryError as error:
                    self.say(f"vLLM: {name} could not be unloaded: {error}")
        self._loaded.clear()
        self.server.stop()
        self._canary.close()
        shutil.rmtree(self.folder / "adapters", ignore_errors=True)

    def serve(self, adapter: Path | None) -> str:
        """Make server and adapter ready, canary passed; the name that requests give. Nothing to do where they are."""
        atexit.unregister(self.close)
        atexit.register(self.close)  # for whoever forgets; once, however often this is called
        if self.server.ready():
            self._forget()
        if not self._checked:
            self._canary.check_base(self._probe([self.server.base])[0])
            self._checked = True
        if adapter is None:
            return self.server.base
        name = f"adapter-{adapter_digest(adapter)[:32]}"
        if name not in self._loaded:
            self._load(name, adapter)
        return name

    def _forget(self) -> None:
        """Another process may answer from here on: nothing that was loaded or checked holds any more."""
        self._loaded.clear()
        self._checked = False

    def _load(self, name: str, adapter: Path) -> None:
        check_adapter_recipe(adapter, self.max_lora_rank)
        copy = (self.folder / "adapters" / name).resolve()
        if not copy.is_dir():
            fresh = copy.with_name(f".{name}")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            for file in ADAPTER_FILES:
                shutil.copyfile(adapter / file, fresh / file)
            fresh.rename(copy)
        if len(self._loaded) >= MAX_CPU_LORAS:
            oldest = next(iter(self._loaded))
            self.server.unload(oldest)
            del self._loaded[oldest]
        self.server.load(name, copy)
        served, base_served = self._probe([name, self.server.base])
        verdict = self._canary.check_adapter(adapter, name, served, base_served)
        self._loaded[name] = None
        seen = (
            "" if verdict.distinct else "; on its prompts the adapter hardly differs from the base"
        )
        self.say(f"vLLM: {name} loaded, {verdict.error:.4f} nats from PEFT on the canary{seen}")

    def _probe(self, names: Sequence[str]) -> list[list[Served]]:
        """The canary's prompts, continued by each model; all requests at once, so that they share a batch."""

        def ask(name: str, chat: Chat) -> Served:
            body = {
                **self.sampling(TOKENS),
                **{
                    "model": name,
                    "messages": chat,
                    "logprobs": True,
                    "top_logprobs": 0,
                    "return_token_ids": True,
                },
            }
            answer = self.server.call("/chat/completions", body)
            with shaped(self.server.url, "/chat/completions"):
                choice = answer["choices"][0]
                if choice.get("token_ids") is None or answer.get("prompt_token_ids") is None:
                    raise BoundaryError(
                        "the server gives no token ids, which the canary needs; use vLLM 0.31 or newer"
                    )
                values = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
                tokens = [int(token) for token in choice["token_ids"]][: len(values)]
                # Of nothing, or of NaN, no comparison would find a fault.
                if not values or not all(map(isfinite, values)) or len(tokens) < len(values):
                    raise ValueError
                return Served([int(token) for token in answer["prompt_token_ids"]], tokens, values)

        # By turns: on a busy machine the first requests end before the last ones arrive.
        jobs = [(name, chat) for chat in PROMPTS for name in names]
        with ThreadPoolExecutor(len(jobs)) as threads:
            served = list(threads.map(lambda job: ask(*job), jobs))
        return [served[i :: len(names)] for i in range(len(names))]

    def sampling(self, max_tokens: int) -> dict[str, Any]:
        """Every sampling parameter, so that no default of a server or of a model folder decides."""
        return {
            "max_tokens": max_tokens,
            "n": 1,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "min_tokens": 0,
            "stop": [],
            "stop_token_ids": self._stops,
            "ignore_eos": False,
            "skip_special_tokens": True,
            "logit_bias": None,
            "seed": None,
        }


class Session:
    """One call of the generator: a client of the server's present process, renewed when that dies."""

    def __init__(self, generator: VllmGenerator, adapter: Path | None) -> None:
        self.generator = generator
        self.adapter = adapter
        self.restarts = 0
        self._epoch = 0
        self._lock = asyncio.Lock()
        self._failed: MosaicError | None = None
        self._client: Any = None
        self._model = ""

    async def __aenter__(self) -> Session:
        try:
            await asyncio.to_thread(self._connect)
        except ServerGone as error:
            await self._recover(self._epoch, error)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._client is not None:
            await self._client.close()

    def _connect(self) -> None:
        import openai

        server = self.generator.server
        self._model = self.generator.serve(self.adapter)
        own = self.generator.config.base_url is None
        direct = is_loopback(server.url)
        self._client = openai.AsyncOpenAI(
            base_url=server.url,
            api_key=server.key or "none",
            max_retries=0 if own else 4,
            timeout=REQUEST_SECONDS,
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not direct, follow_redirects=False, timeout=REQUEST_SECONDS
            ),
        )

    async def ask(self, where: str, chat: Chat) -> Turn:
        """One answer; asked again of the next server where one dies."""
        sampling = self.generator.sampling(self.generator.config.max_new_tokens)
        answer = await self.send("/chat/completions", {**sampling, "messages": chat}, where)
        server = self.generator.server
        with shaped(server.url, "/chat/completions"):
            choice = answer["choices"][0]
            reason = choice["finish_reason"]
            if reason not in ("stop", "length"):
                said = quoted(repr(reason), server.key)
                raise BoundaryError(f"{where}: vLLM ended an answer with finish_reason {said}")
            return Turn(
                (choice["message"]["content"] or "").strip(),
                reason,
                int(answer["usage"]["completion_tokens"]),
            )

    async def read(self, ids: list[int]) -> float:
        """Mean log-likelihood per token of a text, the first token being given."""
        body = {**self.generator.sampling(1), "prompt": ids, "prompt_logprobs": 0}
        answer = await self.send("/completions", body, "likelihood")
        with shaped(self.generator.server.url, "/completions"):
            rows = answer["choices"][0]["prompt_logprobs"]
            values = [
                float(row[str(token)]["logprob"])
                for token, row in zip(ids[1:], rows[1:], strict=True)
            ]
            return sum(values) / len(values)

    async def send(self, path: str, body: dict[str, Any], where: str) -> Any:
        """One request, named `where` in errors; sent again to the next server where one dies."""
        import openai

        config, key = self.generator.config, self.generator.server.key
        hiccups = 0
        while True:
            if self._lock.locked():  # a new server is being started
                async with self._lock:
                    pass
            if self._failed is not None:
                raise self._failed
            epoch = self._epoch
            try:
                return await self._client.post(
                    path, cast_to=object, body={**body, "model": self._model}
                )
            except (
                openai.APIConnectionError,
                openai.InternalServerError,
                openai.NotFoundError,
            ) as error:
                hiccups += 1
                lost = isinstance(error, openai.APIConnectionError) and not isinstance(
                    error, openai.APITimeoutError
                )
                if (
                    lost
                    and hiccups <= HICCUPS
                    and await asyncio.to_thread(self.generator.server.healthy)
                ):
                    continue  # a dropped connection to a server that lives
                await self._recover(epoch, error)
            except openai.BadRequestError as error:
                raise UsageError(
                    f"prompt {where}: vLLM refuses it ({quoted(error.message, key)}); a chat and generator.max_new_tokens must "
                    "fit in generator.max_model_len"
                ) from None
            except openai.APIStatusError as error:
                raise refused(error.status_code, path, error.message, key, config) from None
            except (openai.OpenAIError, ValueError):  # a body that is not the JSON it says it is
                raise misfit(self.generator.server.url, path) from None

    async def _recover(self, epoch: int, error: Exception) -> None:
        """Start again, once for all conversations that saw the same death."""
        async with self._lock:
            if self._failed is not None:
                raise self._failed
            if epoch != self._epoch:
                return
            try:
                await self._renew(error)
            except MosaicError as again:
                self._failed = again  # for all who wait: none of them tries once more
                raise
            self._epoch += 1

    async def _renew(self, error: Exception) -> None:
        log = self.generator.folder / "server.log"
        said = quoted(str(error), self.generator.server.key)
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise BoundaryError(
                f"vLLM died {self.restarts} times in one evaluation; last: {said} (log: {log})"
            )
        self.generator.say(f"vLLM: the server is gone ({said[:100]}); starting it again")
        if self._client is not None:
            await self._client.close()
            self._client = None
        try:
            await asyncio.to_thread(self._restart)
        except (
            asyncio.CancelledError
        ):  # Ctrl-C: the thread that waits for the start ends with the server
            self.generator.server.give_up()
            raise
        except ServerGone as again:
            raise BoundaryError(
                f"vLLM died again right after it was started: {again} (log: {log})"
            ) from None

    def _restart(self) -> None:
        self.generator.server.stop()
        self.generator._forget()
        self._connect()


def adapter_digest(adapter: Path) -> str:
    """SHA-256 over the adapter's two files. BoundaryError where one is missing."""
    total = hashlib.sha256()
    for name in ADAPTER_FILES:
        path = adapter / name
        if not path.is_file():
            raise BoundaryError(f"{adapter}: no {name}, so this is no adapter that vLLM can load")
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def check_adapter_recipe(adapter: Path, max_lora_rank: int) -> None:
    """UsageError where the adapter's config asks for what vLLM's LoRA does not have."""
    path = adapter / ADAPTER_FILES[0]
    config = json.loads(path.read_text())
    rank = config.get("r")
    if not isinstance(rank, int) or rank > max_lora_rank:
        raise UsageError(f"{path}: r is {rank!r}, the server takes at most {max_lora_rank}")
    for field, allowed in PLAIN_RECIPE.items():
        if field in config and config[field] not in allowed:
            raise UsageError(
                f"{path}: {field} is {config[field]!r}, which vLLM cannot serve; allowed: {allowed[0]!r}; "
                "train without it, or use generator.kind: transformers"
            )


def stop_token_ids(base_model: Path) -> list[int]:
    """The end-of-turn tokens of a model folder, as its generation config (else its config) names them."""
    for name in ("generation_config.json", "config.json"):
        path = base_model / name
        value = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return sorted(value if isinstance(value, list) else [value])
    return []
