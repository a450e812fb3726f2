"""A training job in a process of its own: `python -m training.worker JOB.json RESULT.json`.

Progress goes to stdout as lines of JSON, a line per optimiser step: the heartbeat. An expected failure is a last
line `{"error", "failure", "message"}`, and so is a full disk. SIGTERM asks for a checkpoint and a stop. The process ends
with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from mosaic.core.errors import MosaicError
from training.methods.base import TrainJob
from training.methods.failures import FULL

os.environ.setdefault("OMP_NUM_THREADS", "1")
PR_SET_PDEATHSIG = 1


def main(job_path: str, result_path: str) -> int:
    """Train and write the result last; the exit code is the error's."""
    from training.methods.sft import train

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, stop)
    job = TrainJob.model_validate_json(Path(job_path).read_text())
    say({"stage": "loading"})
    try:
        result = train(job, say, lambda: bool(asked))
    except MosaicError as error:
        say(
            {
                "error": type(error).__name__,
                "failure": getattr(error, "failure", None),
                "message": str(error),
            }
        )
        return error.exit_code
    except OSError as error:
        if error.errno not in FULL:
            raise
        say({"error": "OSError", "errno": error.errno, "message": error.strerror})
        return 1
    temporary = Path(result_path).with_suffix(".tmp")
    temporary.write_text(result.model_dump_json())
    temporary.rename(result_path)
    return 0


def say(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
