"""Runs one command in a process group of its own, and ends the group when the controller is gone.

    python vllm_guard.py COMMAND ARGUMENT...

Standard input is a pipe that the controller holds open. The controller may die without a word (kill
-9, out of memory). Its end of the pipe closes then, and the server's processes, which would hold the
device's memory, are ended too: SIGTERM, some seconds, SIGKILL. If the server dies by itself, what is
left of its group goes with it. Started in a session of its own; imports nothing of the project.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE = 10.0


def main() -> int:
    """The server's exit code, as a shell gives it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Only the pipe counts. A handler, since the command would inherit a signal that is ignored.
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, process_group=0, restore_signals=True
    )
    threading.Thread(target=_watch, args=(child.pid,), daemon=True).start()
    code = child.wait()
    _end(child.pid)
    print(f"guard: the server ended with exit code {code}", flush=True)
    return code if code >= 0 else 128 - code


def _watch(group: int) -> None:
    while os.read(0, 1024):
        pass
    _end(group)


def _end(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
