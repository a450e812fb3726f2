"""The vLLM server of one run: started on loopback with a key of its own, watched and ended whole.

`OwnServer` starts `vllm serve`; `AttachedServer` speaks to one that somebody else runs. Both
register and remove LoRA adapters. Nothing here knows what is asked of the model.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from eval.chat.http import Endpoint
from eval.generators.base import VllmGeneratorConfig
from eval.generators.vllm_api import ControlRequests, ServerGone
from mosaic.core.errors import BoundaryError, PausedError, UsageError

BASE = "base"
MAX_LORAS = 4
MAX_CPU_LORAS = 16
LOG_BYTES = 8 * 1024 * 1024
# Seconds: between two lines about a start, for a server to end, for an attached server to come
# back.
REPORT_EVERY = 15.0
STOP_SECONDS = 30.0
PATIENCE = 30.0
# Which process of vLLM wrote a line, how urgent it is, when, and where in its code.
SPEAKER = re.compile(r"^\(\w+ pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:.]+ \[[^\]]*\] ?)?")


class Server(Protocol):
    """A server that answers at `url` (ends in /v1) with `key`. `base` names its base model.

    `starts` counts how often it was started.
    """

    url: str
    key: str
    base: str
    starts: int

    def ready(self) -> bool:
        """Make it answer. True if it was started just now, so that it has no adapters yet."""
        ...

    def endpoint(self, root: str, keep_alive: bool = True) -> Endpoint: ...
    def healthy(self) -> bool: ...
    def call(
        self, path: str, body: Mapping[str, object] | None = None, seconds: float = 120.0
    ) -> Any: ...
    def load(self, name: str, folder: Path) -> None: ...
    def unload(self, name: str) -> None: ...
    def stop(self) -> None: ...
    def give_up(self) -> None:
        """End a start that another thread waits for, and start no more."""
        ...


def find_vllm() -> str:
    """The `vllm` command: beside this Python, or else on the PATH. UsageError if there is none."""
    beside = Path(sys.executable).parent / "vllm"
    command = str(beside) if beside.is_file() else shutil.which("vllm")
    if command is None:
        raise UsageError(
            "generator.kind: vllm needs the `vllm` command, which is not installed; "
            "`pip install -e '.[train,vllm]'`, put the folder that holds it on the PATH, "
            "or give generator.base_url"
        )
    return command


class AttachedServer(ControlRequests):
    """A server at `base_url`. It must see the run directory, since adapters are named by path."""

    def __init__(self, config: VllmGeneratorConfig) -> None:
        assert config.base_url is not None
        super().__init__(config, os.environ.get(config.api_key_env, ""), config.base_url)
        self.base = BASE
        self.starts = 0
        self._met = False

    def ready(self) -> bool:
        """See `Server`.

        PausedError while it does not answer: the operator brings it back, and `resume` goes on.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                models = self.models()
                break
            except ServerGone as error:
                if time.monotonic() > deadline:
                    raise PausedError(
                        f"generator.base_url: {error}; start that server, "
                        "then `python -m mosaic resume`"
                    ) from None
                time.sleep(1.0)
        bases = [m["id"] for m in models if not m["parent"]]
        if not bases:
            raise BoundaryError(f"generator.base_url: {self.url} serves no base model")
        self.base = bases[0]
        # What it held before is not known to be ours: `load` frees a name that is taken.
        first, self._met = not self._met, True
        return first

    def stop(self) -> None:
        """Nothing to do: the server belongs to somebody else."""

    def give_up(self) -> None:
        """Nothing to do: the server starts by itself."""


class OwnServer(ControlRequests):
    """`vllm serve` as a child, under a guard that ends it whenever the controller ends.

    `template` writes the file of the chat template to serve with; None serves with the base's own.
    """

    def __init__(
        self,
        model: Path,
        config: VllmGeneratorConfig,
        max_lora_rank: int,
        folder: Path,
        say: Callable[[str], None],
        template: Callable[[], Path | None] = lambda: None,
        four_bit: bool = False,
    ) -> None:
        super().__init__(config, secrets.token_urlsafe(24))
        self.template = template
        self.four_bit = four_bit
        self.model = model
        self.max_lora_rank = max_lora_rank
        self.folder = folder
        self.say = say
        self.base = BASE
        self.starts = 0
        self._given_up = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._log: threading.Thread | None = None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def ready(self) -> bool:
        """See `Server`. BoundaryError if the start fails, takes too long or was given up."""
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
        template = self.template()
        if template is not None:
            options["chat-template"] = str(template.resolve())
        if self.four_bit:
            options["quantization"] = "bitsandbytes"
        command = [find_vllm(), "serve", str(self.model.resolve())]
        command += [f"--{name}={value}" for name, value in options.items()]
        return [*command, "--enable-lora", "--enable-prefix-caching"]

    def give_up(self) -> None:
        self._given_up.set()
        self.stop()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self.move_to(f"http://127.0.0.1:{port}/v1")
        environment = {
            **os.environ,
            "VLLM_API_KEY": self.key,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            # Longer than any pause between two turns: a connection closed under a request looks
            # like a death.
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
        """Wait until the model is served.

        BoundaryError with the log's end if the server dies or takes too long.
        """
        started = reported = time.monotonic()
        self.say("vLLM: starting the server")
        while True:
            child = self._child
            if child is None or self._given_up.is_set():
                raise BoundaryError("vLLM: its start was given up")
            if child.poll() is not None:
                raise BoundaryError(
                    f"vLLM ended while starting: {self._last_error()} (log: {self.log})"
                )
            try:
                if self.healthy() and self.has(BASE):
                    break
            except ServerGone:
                pass
            now = time.monotonic()
            if now - started > self.config.start_seconds:
                raise BoundaryError(
                    "vLLM was not ready after generator.start_seconds = "
                    f"{self.config.start_seconds:g}; log: {self.log}"
                )
            if now - reported > REPORT_EVERY:
                reported = now
                self.say(f"vLLM: starting for {now - started:.0f} s; {self._last_line()[:100]}")
            time.sleep(0.2)
        self.say(f"vLLM: ready after {time.monotonic() - started:.0f} s")

    def _last_line(self) -> str:
        """What the log says last, without who says it and when."""
        return (self._lines() or ["no output"])[-1][:300]

    def _last_error(self) -> str:
        """The last line of the log that tells of an error, or else its last line."""
        if self._log is not None:
            self._log.join(5.0)
        for line in reversed(self._lines()[-200:]):
            if "Error" in line:
                return line[:300]
        return self._last_line()

    def _lines(self) -> list[str]:
        """The log's lines but for warnings; each state of a progress bar is one."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        found = []
        for line in text.splitlines():
            said = SPEAKER.sub("", line).strip()
            if said and " WARNING " not in line:
                found.append(said)
        return found

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _copy_log(stream: IO[bytes], path: Path) -> None:
    """Copy until the end.

    A full file moves to `<name>.1`, over the one before: two files of `LOG_BYTES` at most.
    """
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
