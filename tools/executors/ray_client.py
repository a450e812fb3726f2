"""The one process that is connected to Ray: `python -m tools.executors.ray_client SETTINGS`.

Ray ends a process that has lost its cluster, without an exception, so it must not be the
controller. Commands come as lines of JSON on stdin, the states of attempts go out on stdout. When
stdin closes without a `bye`, the controller was killed: workers go on.

Workers are detached actors in a namespace of the run's own, so that the next controller finds them
and asks what they do. Each has a name of its own: one that was killed may hold its name for a
while. Ray repeats and restarts nothing itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mosaic.core.types.base import FrozenModel
from tools.executors.base import RayExecutorConfig
from tools.executors.ray_worker import RayWorker, installed_version
from tools.executors.remote import State

# Enough for one that trains, one that asks again, and short questions meanwhile.
THREADS = 8
ANSWER_SECONDS = 20.0
NO_CLUSTER = 3


class Settings(FrozenModel):
    """What the controller tells this process; `environment` is what its workers must have set."""

    config: RayExecutorConfig
    namespace: str
    runs: str
    environment: dict[str, str]


@dataclass(eq=False)
class Worker:
    """An actor, and the attempt that it was given."""

    actor: Any
    attempt: str | None = None


class Client:
    """Gives attempts to workers, and says what becomes of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers: list[Worker] = []
        self.slots = asyncio.Semaphore(settings.config.workers)
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Obey the controller until it is gone."""
        import ray

        doubt = doubt_of_resources(self.settings.config.resources, ray.nodes())
        if doubt:
            say({"doubt": doubt})
        await self._find_workers()
        say({"connected": True})
        renewing = asyncio.create_task(self._renew())
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            if "bye" in command:
                idle = [worker for worker in self.workers if worker.attempt is None]
                await asyncio.gather(*(self._kill(worker) for worker in idle))
                break
            self._obey(command)
        renewing.cancel()
        ray.shutdown()
        # An end that cancels tasks would end the workers that they follow.
        os._exit(0)

    def _obey(self, command: dict[str, str]) -> None:
        ((what, attempt),) = command.items()
        task = self.tasks.get(attempt)
        if what == "start":
            self.tasks[attempt] = asyncio.create_task(self._run(attempt))
        elif what == "attach":
            holding = [w for w in self.workers if w.attempt == attempt]
            if holding:
                say_state(attempt, State.RUNNING)
                self.tasks[attempt] = asyncio.create_task(self._attached(holding[0], attempt))
            else:
                say_state(attempt, State.ENDED, "no worker has it")
        elif what == "end" and task is not None and not task.done():
            task.cancel()
        elif what == "end":
            say_state(attempt, State.ENDED, "it was ended")

    async def _run(self, attempt: str) -> None:
        """Find a worker for an attempt and follow it there."""
        say_state(attempt, State.WAITING)
        try:
            async with self.slots:
                worker = await self._idle() or await self._create()
                await self._follow(worker, attempt)
        except asyncio.CancelledError:
            say_state(attempt, State.ENDED, "it was ended")
        except Exception as error:  # whatever Ray says: the controller must hear of it
            say_state(attempt, State.ENDED, short(error))

    async def _attached(self, worker: Worker, attempt: str) -> None:
        async with self.slots:
            with suppress(asyncio.CancelledError):
                await self._follow(worker, attempt)
                return
            say_state(attempt, State.ENDED, "it was ended")

    async def _follow(self, worker: Worker, attempt: str) -> None:
        """Have a worker train an attempt; one that cannot be reached for now is asked again."""
        from ray.exceptions import ActorUnavailableError

        worker.attempt = attempt
        say_state(attempt, State.RUNNING)
        well, why = False, ""
        try:
            while True:
                try:
                    well = await worker.actor.train.remote(attempt)
                    break
                except ActorUnavailableError:
                    await asyncio.sleep(1)
        except asyncio.CancelledError:
            await self._kill(worker)
            raise
        except Exception as error:  # the worker has died, or could not read the attempt's folder
            why = short(error)
        worker.attempt = None
        if not well:
            # What a failure leaves in a process is not trusted with the next job.
            self._drop(worker)
        say_state(attempt, State.ENDED, why)

    async def _idle(self) -> Worker | None:
        """A worker without a job that answers."""
        for worker in list(self.workers):
            if worker.attempt is not None:
                continue
            worker.attempt = "asked"
            try:
                await asyncio.wait_for(worker.actor.hello.remote(), ANSWER_SECONDS)
                return worker
            except asyncio.CancelledError:
                worker.attempt = None
                raise
            except Exception:  # it has died, or its machine is gone
                self._drop(worker)
        return None

    async def _create(self) -> Worker:
        """A new worker, as soon as the cluster has what it takes."""
        import ray

        settings, resources = self.settings, dict(self.settings.config.resources)
        known = {
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "memory": resources.pop("memory", None),
        }
        actor: Any = (
            ray.remote(RayWorker)
            .options(
                name=f"worker-{uuid.uuid4().hex[:12]}",
                namespace=settings.namespace,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=THREADS,
                resources=resources or None,
                **{name: amount for name, amount in known.items() if amount is not None},
            )
            .remote(
                settings.runs,
                settings.environment,
                settings.config.lease_seconds,
                settings.config.heartbeat_seconds,
            )
        )
        worker = Worker(actor)
        try:
            hello = await actor.hello.remote()
        except BaseException:
            self._drop(worker)
            raise
        version = installed_version()
        if hello["version"] != version:
            self._drop(worker)
            raise RuntimeError(
                f"{hello['host']} has mosaic {hello['version']}, the controller {version}"
            )
        self.workers.append(worker)
        return worker

    async def _find_workers(self) -> None:
        """The workers that an earlier controller of this run has left."""
        import ray

        await asyncio.gather(*(self._find_worker(name) for name in ray.util.list_named_actors()))
        idle = [worker for worker in self.workers if worker.attempt is None]
        surplus = max(0, len(self.workers) - self.settings.config.workers)
        for worker in idle[:surplus]:
            self._drop(worker)

    async def _find_worker(self, name: str) -> None:
        """Take up a worker that was left, if it answers. One that was never placed is removed."""
        import ray

        try:
            actor: Any = ray.get_actor(name, self.settings.namespace)
        except ValueError:  # it has died meanwhile
            return
        try:
            doing: str | None = await asyncio.wait_for(actor.doing.remote(), ANSWER_SECONDS)
        except TimeoutError:
            # It still waits for resources, or its node is gone: nobody would use it again.
            self._drop(Worker(actor))
        except Exception:  # it has died meanwhile: nobody can use it
            return
        else:
            self.workers.append(Worker(actor, doing))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.settings.config.lease_seconds / 4)
            for worker in self.workers:
                worker.actor.renew.remote()

    async def _kill(self, worker: Worker) -> None:
        """End a worker, and return when it has ended or cannot be reached. `ray.kill` does not wait."""
        from ray.exceptions import ActorDiedError

        self._drop(worker)
        with suppress(Exception):
            async with asyncio.timeout(ANSWER_SECONDS):
                while True:
                    try:
                        await worker.actor.doing.remote()
                    except ActorDiedError:
                        return
                    await asyncio.sleep(0.05)

    def _drop(self, worker: Worker) -> None:
        import ray

        if worker in self.workers:
            self.workers.remove(worker)
        with suppress(Exception):  # it may be dead already
            ray.kill(worker.actor, no_restart=True)


def connect(settings: Settings) -> None:
    """Connect to the cluster, or start one of this machine's own behind a token.

    Its ports cannot be bound to loopback alone where the machine has another address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if settings.config.address is None:
        # Ray's workers give way to everything else of a machine unless they are told not to.
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    address = settings.config.address
    if address is not None and address != "auto":
        # Ray itself would wait for minutes.
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    ray.init(
        address=address or "local",
        namespace=settings.namespace,
        log_to_driver=False,
        include_dashboard=None if address else False,
    )


def doubt_of_resources(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> str:
    """What to tell a person if no node of a cluster has what one worker takes; empty if one has.

    `nodes` are Ray's own (`ray.nodes()`). A cluster that grows by itself may still get such a node.

    >>> one = {"Alive": True, "NodeName": "a", "Resources": {"CPU": 4.0, "memory": 8e9}}
    >>> doubt_of_resources({"CPU": 2}, [one])
    ''
    >>> doubt_of_resources({"CPU": 2, "GPU": 1}, [one])
    'no node of Ray has CPU 2 and GPU 1 for a worker, the largest amounts are CPU 4 and GPU 0; \
trainings wait until a node with them joins'
    """
    most = dict.fromkeys(wanted, 0.0)
    for node in nodes:
        if not node["Alive"]:
            continue
        held = {name: node["Resources"].get(name, 0.0) for name in wanted}
        if all(held[name] >= amount for name, amount in wanted.items()):
            return ""
        most = {name: max(most[name], held[name]) for name in wanted}
    asked = " and ".join(f"{name} {amount:g}" for name, amount in wanted.items())
    there = " and ".join(f"{name} {amount:g}" for name, amount in most.items())
    return (
        f"no node of Ray has {asked} for a worker, the largest amounts are {there}; trainings wait "
        "until a node with them joins"
    )


def say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def say_state(attempt: str, state: State, why: str = "") -> None:
    say({"attempt": attempt, "state": state.value, "why": why})


def short(error: BaseException) -> str:
    """What an exception says, without the tracebacks that Ray adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    last = lines[-1] if len(lines) > 1 else ""
    return f"{type(error).__name__}: {first[:200]} {last[:200]}".strip()


def main(settings_json: str) -> int:
    """Serve until the controller is gone; NO_CLUSTER if there is none to connect to."""
    settings = Settings.model_validate_json(settings_json)
    try:
        connect(settings)
    except (
        Exception
    ) as error:  # ConnectionError, RuntimeError, ValueError, ...: whatever Ray raises
        say({"lost": short(error)})
        return NO_CLUSTER
    asyncio.run(Client(settings).serve())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
