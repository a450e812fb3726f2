"""A chat endpoint on a bad day: 2,000 calls to a server that spoils 30 % of its replies."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from benchmarks.figures import Rows, figure
from eval.chat.client import Attempt, BadReply, ChatConfig, ChatModel, ChatUnavailable
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


@dataclass(frozen=True)
class Campaign:
    """What came of so many calls."""

    ends: Counter[str]
    attempts: float
    max_attempts: int
    over: float
    wait: float
    trapped: int
    kinds: int
    failed: int
    charged: int
    seconds: float

    @property
    def typed(self) -> int:
        """Calls that ended as a value or as one typed failure."""
        return self.ends["value"] + self.ends["ChatUnavailable"] + self.ends["BadReply"]


def campaign(calls: int, rate: float, seed: int = 1) -> Campaign:
    """Make so many calls. Waits between attempts are noted and not slept."""
    waits: list[float] = []
    ends: Counter[str] = Counter()
    attempts: list[int] = []
    over: list[float] = []
    charged = 0
    # The client's first use imports for seconds on a busy machine, which is not the fault of any
    # reply.
    with ScriptedServer() as server:
        ChatModel(ChatConfig(base_url=server.url)).complete(
            [{"role": "user", "content": "Are you there?"}]
        )
    with ScriptedServer(faults=rate, seed=seed, hang_seconds=TIMEOUT * 2) as server:
        chat = ChatModel(
            ChatConfig(base_url=server.url, timeout_seconds=TIMEOUT), sleep=waits.append
        )

        def one(number: int) -> tuple[str, list[Attempt]]:
            """How one call ended, and its attempts."""
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
                for record in records:
                    over.append(max(0.0, record.seconds - TIMEOUT))
                    if record.error:
                        charged += record.charged > 0 or record.error in FREE
        chat.close()
        return Campaign(
            ends=ends,
            attempts=sum(attempts) / calls,
            max_attempts=max(attempts),
            over=max(over),
            wait=max(waits, default=0.0),
            trapped=len(server.trapped),
            kinds=len(set(server.seen) & set(FAULTS)),
            failed=sum(attempts) - ends["value"],
            charged=charged,
            seconds=time.monotonic() - started,
        )


def faults(quick: bool) -> Rows:
    """30 % bad replies of all kinds, then a sweep of the rate."""
    calls = 200 if quick else 2000
    # Eight bad replies in a row are chance: 0.13 of 2,000 calls expected, and a busy machine adds
    # attempts that run out of time. One of 200 calls is more than 0.1 %.
    least = 0.99 if quick else 0.999
    got = campaign(calls, 0.3)
    succeeded = got.ends["value"] / calls
    uncharged = got.failed - got.charged
    kinds = len(FAULTS) - 4 if quick else len(FAULTS)
    rows = [
        figure(
            "calls that end as a value or one typed failure", got.typed / calls, "of 1", at_least=1
        ),
        figure(f"of {calls} calls succeed", succeeded, "of 1", at_least=least),
        figure("attempts per call", got.attempts, "", at_most=1.6),
        figure("most attempts of a call", got.max_attempts, "", at_most=8),
        figure("attempt past its time limit by", got.over, "s", at_most=SLACK),
        figure("longest wait that was asked for", got.wait, "s", at_most=120),
        figure("requests that followed a redirect", got.trapped, "", at_most=0),
        figure("failed attempts that were not charged", uncharged, "", at_most=0),
        figure(f"kinds of fault met, of {len(FAULTS)}", got.kinds, "", at_least=kinds),
        figure("wall time", got.seconds, "s"),
    ]
    for rate in (0.0, 0.1, 0.6):
        swept = campaign(calls // 4, rate, seed=2)
        expected = sum(rate**attempt for attempt in range(8))
        what = f"rate {rate}: attempts per call (1/(1-p) is {expected:.2f})"
        rows.append(figure(what, swept.attempts, ""))
        typed = swept.typed / (calls // 4)
        rows.append(figure(f"rate {rate}: value or typed failure", typed, "of 1", at_least=1))
    return rows
