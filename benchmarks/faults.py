"""A chat endpoint on a bad day: 2,000 calls over real HTTP against a server of which 30 % of the replies are bad."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from benchmarks.figures import figure
from eval.chat.client import BadReply, ChatConfig, ChatModel, ChatUnavailable
from eval.chat.strict_json import Invalid, parse_strict
from mosaic.core.types.base import FrozenModel
from mosaic.lab.server import FAULTS, ScriptedServer
from tools.planning.schemas import schema_of

THREADS = 24
TIMEOUT = 1.5
SLACK = 2.0
FREE = ("http_429",)  # turned away before the model saw it


class Verdict(FrozenModel):
    """What each call must come back as."""

    reason: str
    verdict: Literal["met", "not_met"]


def campaign(calls: int, rate: float, seed: int = 1) -> dict[str, Any]:
    """Outcomes of so many calls. Waits between attempts are noted instead of slept."""
    waits: list[float] = []
    ends: Counter[str] = Counter()
    attempts: list[int] = []
    over: list[float] = []
    charged = unknown = 0
    with (
        ScriptedServer() as server
    ):  # the client's first use imports for seconds on a busy machine: no reply's fault
        ChatModel(ChatConfig(base_url=server.url)).complete(
            [{"role": "user", "content": "Are you there?"}]
        )
    with ScriptedServer(faults=rate, seed=seed, hang_seconds=TIMEOUT * 2) as server:
        chat = ChatModel(
            ChatConfig(base_url=server.url, timeout_seconds=TIMEOUT), sleep=waits.append
        )

        def one(number: int) -> tuple[str, list[Any]]:
            messages = [{"role": "user", "content": f"Is item {number} met?"}]
            try:
                got = chat.complete(messages, schema=schema_of(Verdict))
                parse_strict(got.text, Verdict)
                return "value", got.attempts
            except (ChatUnavailable, BadReply) as error:
                return type(error).__name__, error.attempts
            except Invalid:
                return "invalid", []
            except Exception as error:  # what has no type is what this figure counts
                return f"untyped {type(error).__name__}", []

        started = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            for end, records in pool.map(one, range(calls)):
                ends[end] += 1
                attempts.append(len(records))
                over += [max(0.0, r.seconds - TIMEOUT) for r in records]
                charged += sum(r.charged > 0 or r.error in FREE for r in records if r.error)
                unknown += sum(r.tokens is None for r in records if r.error)
        chat.close()
        return {
            "ends": ends,
            "attempts": sum(attempts) / calls,
            "most": max(attempts),
            "over": max(over),
            "wait": max(waits, default=0.0),
            "trapped": len(server.trapped),
            "kinds": len(set(server.seen) & set(FAULTS)),
            "failed": sum(attempts) - ends["value"],
            "charged": charged,
            "seconds": time.monotonic() - started,
        }


def faults(quick: bool) -> list[dict[str, Any]]:
    """30 % bad replies of all kinds, then a sweep of the rate."""
    calls = 200 if quick else 2000
    got = campaign(calls, 0.3)
    ends = got["ends"]
    typed = ends["value"] + ends["ChatUnavailable"] + ends["BadReply"]
    rows = [
        figure("calls that end as a value or one typed failure", typed / calls, "of 1", at_least=1),
        figure(f"of {calls} calls succeed", ends["value"] / calls, "of 1", at_least=0.999),
        figure("attempts per call", got["attempts"], "", at_most=1.6),
        figure("most attempts of a call", got["most"], "", at_most=8),
        figure("attempt past its time limit by", got["over"], "s", at_most=SLACK),
        figure("longest wait that was asked for", got["wait"], "s", at_most=120),
        figure("requests that followed a redirect", got["trapped"], "", at_most=0),
        figure(
            "failed attempts that were not charged", got["failed"] - got["charged"], "", at_most=0
        ),
        figure(
            f"kinds of fault met, of {len(FAULTS)}",
            got["kinds"],
            "",
            at_least=len(FAULTS) - (4 if quick else 0),
        ),
        figure("wall time", got["seconds"], "s"),
    ]
    for rate in (0.0, 0.1, 0.6):
        swept = campaign(calls // 4, rate, seed=2)
        expected = sum(rate**k for k in range(8))
        rows.append(
            figure(
                f"rate {rate}: attempts per call (1/(1-p) is {expected:.2f})", swept["attempts"], ""
            )
        )
        typed = (
            swept["ends"]["value"] + swept["ends"]["ChatUnavailable"] + swept["ends"]["BadReply"]
        )
        rows.append(
            figure(f"rate {rate}: value or typed failure", typed / (calls // 4), "of 1", at_least=1)
        )
    return rows
