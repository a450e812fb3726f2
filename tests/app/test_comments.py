"""People comment on events: everybody who reads the trace sees it, and nobody else does."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import page
from mosaic.app.cli.main import app
from mosaic.app.comments import add_comment, read_comments
from mosaic.app.views.story_markdown import entry_markdown
from mosaic.app.views.story_text import story_text
from mosaic.app.views.telling import entry_of, story_of
from mosaic.app.views.trace import trace_data
from mosaic.app.views.trace_html import write_trace
from mosaic.app.web.guard import csrf_of
from mosaic.core.errors import DamageError, UsageError

HEADERS = {"origin": page.ORIGIN, "x-csrf-token": csrf_of(page.TOKEN)}
SAID = "why so much of the <b>lessons</b>?"


def planned(folder):
    """The number of the event that proposed the plan."""
    return next(event["seq"] for event in trace_data(folder) if event["kind"] == "planned")


def test_a_comment_stands_beside_its_event_in_every_view(asked, tmp_path):
    folder, _ = asked
    seq = planned(folder)
    done = CliRunner().invoke(app, ["comment", str(folder), str(seq), SAID, "--by", "ann"])
    assert done.stdout == f"event {seq}: commented by ann\n"
    assert SAID in entry_markdown(entry_of(folder, seq))
    assert "ann commented" in story_text(story_of(folder), 100)
    (told,) = [event for event in trace_data(folder) if event["comments"]]
    assert (told["seq"], told["comments"][0]["text"]) == (seq, SAID)
    write_trace(story_of(folder), tmp_path / "trace.html")
    assert "why so much of the &lt;b&gt;lessons" in (tmp_path / "trace.html").read_text()
    write_trace(story_of(folder), tmp_path / "bare.html", with_texts=False)
    assert "why so much" not in (tmp_path / "bare.html").read_text()


def test_a_turn_of_a_conversation_is_commented_on_by_its_own_number(asked):
    folder, _ = asked
    seq = planned(folder)
    turn = entry_of(folder, seq).turns[0].id
    add_comment(folder, turn, "first", "ann")
    add_comment(folder, turn, "second", " bob  b ")
    entry = entry_of(folder, seq)
    said = [part.text for part in entry.turns[0].parts[:2]]
    assert said == ["first", "second"]
    assert [c.by for c in read_comments(folder)[turn]] == ["ann", "bob b"]


def test_a_person_comments_from_the_page_of_an_event(asked):
    folder, _ = asked
    seq = planned(folder)
    web = page.client(folder.parent)
    address = f"/run/{folder.name}/event/{seq}"
    form = {"event": str(seq), "text": SAID, "by": "carl"}
    assert web.post(f"{address}/comment", headers=HEADERS, data=form).status_code == 303
    assert "carl commented" in web.get(address).text
    assert web.post(f"{address}/comment", headers=HEADERS, data={"text": " "}).status_code == 409
    assert web.post(f"{address}/comment", data=form).status_code == 403, "no token, no comment"


@pytest.mark.parametrize("event", ["100000", "1.999", "x", "../1"])
def test_there_is_nothing_to_say_of_an_event_that_is_not_there(asked, event):
    folder, _ = asked
    done = CliRunner().invoke(app, ["comment", str(folder), event, "hm"])
    assert isinstance(done.exception, UsageError)
    assert read_comments(folder) == {}


def test_a_broken_line_is_named(asked):
    folder, _ = asked
    add_comment(folder, str(planned(folder)), "fine", "ann")
    with (folder / "comments.jsonl").open("a") as file:
        file.write(json.dumps({"event": "x"}) + "\n")
    with pytest.raises(DamageError, match=r"comments\.jsonl:2"):
        read_comments(folder)


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_a_comment_may_hold_any_line_separator(tmp_path, separator):
    add_comment(tmp_path, "1", f"first{separator}second", "ann")
    add_comment(tmp_path, "2", "third", "bob")
    found = read_comments(tmp_path)
    assert [found[event][0].text for event in ("1", "2")] == [f"first{separator}second", "third"]
