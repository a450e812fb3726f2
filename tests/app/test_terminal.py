"""What others wrote reaches a terminal as text: neither markup nor escapes are obeyed."""

import io
import os
import subprocess
import sys

from mosaic.app.progress import Bars
from mosaic.app.terminal import say, table

HOSTILE = "a:b:c [/b] [link=http://x]y[/link] \x1b]0;owned\x07\x1b[2J \u202e abc"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(text):
    return not any(c in text for c in "\x1b\x07\u202e")


def test_notices_beside_a_progress_bar_are_shown_as_they_stand(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Bars(say) as bars:
        bars.notify(HOSTILE)
    written = sys.stderr.getvalue()
    assert "a:b:c [/b] [link=http://x]y[/link]" in written
    assert "\x1b]0;" not in written
    assert "\u202e" not in written


def test_lines_and_tables_are_shown_as_they_stand(capsys):
    say(HOSTILE + "\nsecond")
    table(HOSTILE, ["a"], [[HOSTILE]])
    written = capsys.readouterr()
    assert "a:b:c [/b] [link=http://x]y[/link]" in written.err
    assert written.err.endswith("\nsecond\n")
    assert "[/b]" in written.out
    assert shown(written.err)
    assert shown(written.out)


def test_an_interrupt_does_not_wait_for_other_threads():
    code = """
import sys, threading, time
from mosaic.app.cli import main as cli
@cli.app.command()
def waits():
    threading.Thread(target=time.sleep, args=(90,)).start()
    raise KeyboardInterrupt
sys.argv = ["mosaic", "waits"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        130,
        "interrupted; nothing that was finished is lost\n",
    )


HEAVY = ("torch", "transformers", "langgraph", "moocore", "numpy", "pyarrow", "pydantic", "agent")


def test_help_says_what_this_is_and_lists_commands_in_groups_without_heavy_imports():
    code = f"""
import sys
from mosaic.app.cli import main as cli
sys.argv = ["mosaic", "--help"]
try:
    cli.main()
except SystemExit:
    pass
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print("LOADED", loaded)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert "LOADED []" in done.stdout
    about = done.stdout.split("─ Options")[0]
    assert "fine-tunes a model round by round" in about
    assert about.count(". ") + about.count(".\n") <= 3
    for group in ("Set up", "Run", "Approve", "Read a run", "Data, judges and the laboratory"):
        assert f"─ {group} ─" in done.stdout
