"""The server of one run: started on loopback with a key of its own, watched, logged within limits, ended whole.

`OwnServer` starts `vllm serve`; `AttachedServer` speaks to one that somebody else runs. Both register and remove LoRA
adapters. Nothing here knows what is asked of the model.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from eval.chat.http import is_loopback
from eval.chat.reply import quoted
from eval.chat.strict_json import MAX_BYTES
from eval.generators.base import VllmGeneratorConfig
from mosaic.core.errors import BoundaryError, PausedError, UsageError

BASE = "base"
MAX_LORAS = 4
MAX_CPU_LORAS = 16
LOG_BYTES = 8 * 1024 * 1024
SAY_EVERY = 15.0
STOP_SECONDS = 30.0
PATIENCE = 30.0


class ServerGone(BoundaryError):
    """The server does not answer any more. The generator starts it again and goes on; users see it only in the end."""


class Server(Protocol):
    """A server that answers at `url` (ends in /v1) with `key`; `base` is the name of its base model."""

    url: str
    key: str
    base: str
    starts: int

    def ready(self) -> bool:
        """Make it answer. True where it was started just now, so that it has no adapters yet."""
        ...

    def healthy(self) -> bool: ...
    def call(
        self, path: str, body: dict[str, Any] | None = None, seconds: float = 120.0
    ) -> Any: ...
    def load(self, name: str, folder: Path) -> None: ...
    def unload(self, name: str) -> None: ...
    def stop(self) -> None: ...
    def give_up(self) -> None:
        """End a start that another thread waits for, and start no more."""
        ...


def find_vllm() -> str:
    """The `vllm` command: beside this Python, else on the PATH. UsageError where there is none."""
    beside = Path(sys.executable).parent / "vllm"
    found = str(beside) if beside.is_file() else shutil.which("vllm")
    if found is None:
        raise UsageError(
            "generator.kind: vllm needs the `vllm` command, which is not installed; `pip install -e '.[train,vllm]'`, "
            "put the folder that holds it on the PATH, or give generator.base_url"
        )
    return found


def refused(
    status: int, path: str, said: str, key: str, config: VllmGeneratorConfig
) -> BoundaryError:
    """What a status other than 200 means to the operator. `said` is the server's text; the key is never quoted."""
    text = f"vLLM answered {status} to {path}: {quoted(said, key)}"
    if 300 <= status < 400:
        text += "; a redirect is never followed, since it would take the key elsewhere; check generator.base_url"
    if status in (401, 403):
        text += f"; put a valid key into the environment variable {config.api_key_env}"
    return BoundaryError(text)


def misfit(url: str, path: str) -> BoundaryError:
    """Something answers, but not as vLLM would."""
    return BoundaryError(f"{url}{path} does not answer as vLLM does; check generator.base_url")


@contextmanager
def shaped(url: str, path: str) -> Iterator[None]:
    """`misfit` where a reply that is read inside has not the shape of vLLM's."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise misfit(url, path) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would take the Authorization header along, to any host."""

    def redirect_request(self, *args: Any) -> None:
        return None


class _Http:
    """Control requests. No redirect is followed; loopback is never sent through a proxy."""

    url: str
    key: str
    config: VllmGeneratorConfig

    def call(self, path: str, body: dict[str, Any] | None = None, seconds: float = 120.0) -> Any:
        root = self.url.removesuffix("/v1") if path == "/health" else self.url
        request = urllib.request.Request(
            root + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        direct = [urllib.request.ProxyHandler({})] if is_loopback(self.url) else []
        try:
            with urllib.request.build_opener(_NoRedirect, *direct).open(
                request, timeout=seconds
            ) as answer:
                text = answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            raise refused(error.code, path, _body(error), self.key, self.config) from None
        except (OSError, http.client.HTTPException) as error:
            said = quoted(str(error), self.key)
            raise ServerGone(f"vLLM does not answer at {self.url}{path}: {said}") from None
        except ValueError:  # its message would quote the header
            raise UsageError(
                f"{self.config.api_key_env}: the key in this environment variable cannot be sent as a header; "
                "give it in plain ASCII, without line breaks"
            ) from None
        try:
            return json.loads(text)
        except ValueError:
            return text

    def healthy(self) -> bool:
        """Whether it answers and its engine says that it lives."""
        try:
            self.call("/health", seconds=10.0)
        except BoundaryError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        """The models that it serves, each with a text as `id`."""
        with shaped(self.url, "/models"):
            cards = [dict(card) for card in self.call("/models", seconds=10.0)["data"]]
            if not all(isinstance(card["id"], str) for card in cards):
                raise TypeError
            return cards

    def load(self, name: str, folder: Path) -> None:
        """Register an adapter. A name that is taken is freed first: names are digests, but a path may have gone."""
        if any(m["id"] == name for m in self.models()):
            self.unload(name)
        try:
            self.call("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except ServerGone:
            raise
        except BoundaryError as error:
            hint = (
                "; start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                if " 404 " in str(error)
                else ""
            )
            raise BoundaryError(
                f"the adapter at {folder} could not be registered: {error}{hint}"
            ) from None

    def unload(self, name: str) -> None:
        self.call("/unload_lora_adapter", {"lora_name": name})


class AttachedServer(_Http):
    """A server at `base_url`. It must see the run directory, since adapters are named by path."""

    def __init__(self, config: VllmGeneratorConfig) -> None:
        assert config.base_url is not None
        self.config = config
        self.url = config.base_url
        self.key = os.environ.get(config.api_key_env, "")
        self.base = BASE
        self.starts = 0
        self._met = False

    def ready(self) -> bool:
        """PausedError while it does not answer: the operator brings it back, `resume` goes on."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                models = self.models()
                break
            except ServerGone as error:
                if time.monotonic() > deadline:
                    raise PausedError(
                        f"generator.base_url: {error}; start that server, then `python -m mosaic resume`"
                    ) from None
                time.sleep(1.0)
        roots = [m["id"] for m in models if not m.get("parent")]
        if not roots:
            raise BoundaryError(f"generator.base_url: {self.url} serves no base model")
        self.base = roots[0]
        first, self._met = not self._met, True
        return (
            first  # what it held before is not known to be ours: `load` frees a name that is taken
        )

    def stop(self) -> None:
        """It is somebody else's."""

    def give_up(self) -> None:
        """It starts by itself."""


class OwnServer(_Http):
    """`vllm serve` as a child, under a guard that ends it with the controller, however that ends."""

    def __init__(
        self,
        model: Path,
        config: VllmGeneratorConfig,
        max_lora_rank: int,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.model = model
        self.config = config
        self.max_lora_rank = max_lora_rank
        self.folder = folder
        self.say = say
        self.base = BASE
        self.key = secrets.token_urlsafe(24)
        self.url = ""
        self.starts = 0
        self._given_up = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._log: threading.Thread | None = None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def ready(self) -> bool:
        if self._child is not None and self._child.poll() is None and self.healthy():
            return False
        self.stop()
        if self._given_up.is_set():
            raise BoundaryError("vLLM: its start was given up")
        self._start()
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return True

    def command(self, port: int) -> list[str]:
        """The command line; the key travels in the environment, where other users do not see it."""
        config = self.config
        options = {
            "served-model-name": BASE,
            "host": "127.0.0.1",
            "port": port,
            "dtype": config.dtype,
            "seed": 0,
            "generation-config": "vllm",
            "max-loras": MAX_LORAS,
            "max-cpu-loras": MAX_CPU_LORAS,
            "max-lora-rank": self.max_lora_rank,
            "max-num-seqs": config.concurrency,
            "gpu-memory-utilization": config.gpu_memory_utilization,
            "uvicorn-log-level": "warning",
        }
        if config.max_model_len:
            options["max-model-len"] = config.max_model_len
        flags = ["--enable-lora", "--enable-prefix-caching"]
        return [
            *(find_vllm(), "serve", str(self.model.resolve())),
            *(f"--{name}={value}" for name, value in options.items()),
            *flags,
        ]

    def give_up(self) -> None:
        self._given_up.set()
        self.stop()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        environment = {
            **os.environ,
            "VLLM_API_KEY": self.key,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            # Longer than any pause between two turns: a connection closed under a request looks like a death.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
        }
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("vllm_guard.py")), *self.command(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self._log = threading.Thread(
            target=_copy_log, args=(self._child.stdout, self.log), daemon=True
        )
        self._log.start()
        self.starts += 1

    def _wait(self) -> None:
        """Until the model is served. BoundaryError with the log's end where the server dies or takes too long."""
        started = said = time.monotonic()
        self.say("vLLM: starting the server")
        while True:
            child = self._child
            if child is None or self._given_up.is_set():
                raise BoundaryError("vLLM: its start was given up")
            if child.poll() is not None:
                raise BoundaryError(
                    f"vLLM ended while starting: {self._last_words()} (log: {self.log})"
                )
            try:
                if self.healthy() and any(m["id"] == BASE for m in self.models()):
                    break
            except ServerGone:
                pass
            now = time.monotonic()
            if now - started > self.config.start_seconds:
                raise BoundaryError(
                    f"vLLM was not ready after generator.start_seconds = {self.config.start_seconds:g}; log: {self.log}"
                )
            if now - said > SAY_EVERY:
                said = now
                self.say(f"vLLM: starting for {now - started:.0f} s; {self._last_words()[:100]}")
            time.sleep(0.2)
        self.say(f"vLLM: ready after {time.monotonic() - started:.0f} s")

    def _last_words(self) -> str:
        if self._log is not None and self._child is not None and self._child.poll() is not None:
            self._log.join(5.0)
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        errors = [line for line in lines[-200:] if "Error" in line]
        return (errors or lines or ["no output"])[-1].strip()[:300]

    def stop(self) -> None:
        """End the whole process group and wait until it is gone."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if self._log is not None:
            self._log.join(5.0)


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(MAX_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "(no whole body)"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _copy_log(stream: IO[bytes], path: Path) -> None:
    """Copy until the end; a full file moves to `<name>.1`, over the one before, so that two limits are the most."""
    size = path.stat().st_size if path.is_file() else 0
    target = path.open("ab")
    try:
        while chunk := os.read(stream.fileno(), 65536):
            if size + len(chunk) > LOG_BYTES:
                target.close()
                os.replace(path, path.with_name(path.name + ".1"))
                target, size = path.open("wb"), 0
            target.write(chunk)
            target.flush()
            size += len(chunk)
    finally:
        target.close()
        stream.close()
