"""Every extension that docs/extending.md shows still applies, costs what it says there, and runs."""

import re
import subprocess

import pytest

from benchmarks.extension import DOCUMENT, EXTENSIONS, Cost, apply, counted, patch, run, section

SAID = {
    "A planner": "planned 2 rounds of a run",
    "An objective in YAML": "scored a line as shown",
    "An objective in Python": "scored a line as shown",
    "A training recipe": "4 steps on the largest batch",
}


def said_cost(title):
    """What the table of the document says: new files, and changed lines elsewhere."""
    row = rf"^\| {title.lower()} \| (\d+) \| (\d+) \|"
    found = re.search(row, DOCUMENT.read_text(), re.MULTILINE | re.IGNORECASE)
    return Cost(*map(int, found.groups()))


@pytest.mark.parametrize("title", EXTENSIONS)
def test_an_extension_as_documented_costs_what_is_said_and_runs(title, tmp_path):
    assert apply(section(title), tmp_path) == said_cost(title)
    done = run(EXTENSIONS[title][0], tmp_path)
    assert done.returncode == 0, done.stderr
    assert SAID[title] in done.stdout


def test_without_its_registration_a_planner_is_not_known(tmp_path):
    blocks = [block for block in section("A planner") if block.what != "diff"]
    assert apply(blocks, tmp_path) == Cost(new_files=1, changed_lines=0)
    done = run("planner", tmp_path)
    assert done.returncode
    assert "worst_first" in done.stderr


def test_a_diff_that_does_not_fit_any_more_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text("one = 1\n")
    change = "--- a/a.py\n+++ b/a.py\n@@ -1 +1,2 @@\n two = 2\n+three = 3\n"
    with pytest.raises(subprocess.CalledProcessError):
        patch(tmp_path, change)


def test_a_removed_file_and_a_changed_line_count():
    assert counted({"a": "1\n", "b": "2\n"}, {"b": "3\n"}) == Cost(0, 3)
