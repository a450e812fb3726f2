"""The reasoning of a run as people read it: page, terminal, Markdown and a file to hand on say the same."""

import json
import re
import shutil
from html import unescape

import jsonschema
import pytest

from agent.approval import HumanApprover
from benchmarks import page
from benchmarks.standins import ALL_METHODS, StandIn, Witness
from mosaic.app.decisions import approve, pending, reject
from mosaic.app.schemas import schema_of
from mosaic.app.telemetry.spans import spans_of
from mosaic.app.views.report_data import report_data
from mosaic.app.views.story import flat
from mosaic.app.views.story_markdown import entry_markdown
from mosaic.app.views.story_text import entry_text, story_text
from mosaic.app.views.telling import story_of, turn_of
from mosaic.app.views.trace import one_event, trace_data
from mosaic.app.views.trace_html import write_trace
from mosaic.app.views.turns import money_of
from mosaic.core.errors import UsageError, WaitingError
from mosaic.core.journal import Journal
from mosaic.core.types.practice_records import FormWishes
from mosaic.core.types.records import AskPlanner
from mosaic.lab.script import reply
from mosaic.lab.server import ScriptedServer

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None
)
THOUGHT = "The worst slices hold the result back."
WORDS = "I think that more of everything is the answer."
REASON = "Keep more of the benign prompts, please."
WRONG = {
    "rationale": "All of it at once, whatever it breaks.",
    "ratios": {"benign": 0.9, "elsewhere": "much"},
    "bucket_weights": {},
    "focus": [],
    "expected": {},
}


def script(request):
    """The scripted planner, which thinks aloud and once submits a plan that cannot be taken."""
    spoken = sum(message["role"] == "assistant" for message in request["messages"])
    said = {**reply(request), "reasoning_content": THOUGHT}
    if spoken == 2:
        function = {"name": "submit_plan", "arguments": json.dumps(WRONG)}
        said["tool_calls"] = [{"id": "w", "type": "function", "function": function}]
        said["content"] = WORDS
    return said


def run_to_the_end(made, folder, witness):
    """Let a person turn the first plan down and take each other one."""
    turned_down = False
    while True:
        try:
            return made.run(folder, witness)
        except WaitingError:
            asked = pending(folder).request
            if turned_down:
                approve(folder, asked, by="ann")
            else:
                reject(folder, asked, reason=REASON, by="ann")
                turned_down = True


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two finished runs: one planned by a model with prices, one by the surrogate."""
    root = tmp_path_factory.mktemp("runs")
    common = ("rounds=1", "calibration.repeats=1")
    with ScriptedServer(script=script, pick=lambda n: "error_503" if n == 2 else None) as server:
        model = (
            "planner.kind=llm",
            f"planner.chat.base_url={server.url}",
            "planner.prices={input: 0.15, output: 0.6}",
        )
        for name, more in (("llm", model), ("profile", ("planner.kind=profile",))):
            made = StandIn.make(*common, *more, per_slice=3)
            made.approver = HumanApprover() if name == "llm" else None
            witness = Witness(root / f"{name}.witness")
            made.create(root / name)
            run_to_the_end(made, root / name, witness)
    return root


@pytest.fixture(scope="module")
def llm(root):
    return root / "llm"


def titles(html):
    """(id, title) of every entry of a page, in order."""
    found = re.findall(r'<h\d id="t([\d.]+)">(.*?)</h\d>', html, re.DOTALL)
    return [(id_, unescape(re.sub(r"<.*?>", "", title)).strip()) for id_, title in found]


def planned(folder):
    """The event of the plan that was turned down, with its conversation."""
    return next(e for e in story_of(folder, 1).chapters[0].entries if e.kind == "planned")


# -- what a round says -----------------------------------------------------------------------------


def test_a_round_reads_as_a_conversation(llm):
    entries = story_of(llm, 1).chapters[0].entries
    kinds = [entry.kind for entry in entries]
    first = ["observed", "planned", "checked", "asked", "decided"]
    assert kinds[:5] == first
    assert kinds.index("measured") > kinds.index("trained") > kinds.index("curated")
    seen = entries[0].parts
    slices = seen[1].bars
    assert [bar.mean for bar in slices] == sorted(bar.mean for bar in slices)
    assert all(bar.low <= bar.mean <= bar.high and bar.note for bar in slices)
    turns = entries[1].turns
    assert turns[0].title.startswith("the model, call 1, called past_rounds")
    looked = next(turn for turn in turns if turn.title.startswith("looked at"))
    assert re.fullmatch(r"looked at \w+, \w+: \d\.\d\d, \d+ % fail", looked.title)
    assert looked.objectives


def test_what_a_model_was_sent_thought_said_and_cost_stands_at_its_turn(llm):
    turns = [turn for turn in planned(llm).turns if turn.kind == "model"]
    sent = [part for turn in turns for part in turn.parts if part.kind == "messages"]
    assert len(sent) == len(turns)
    assert [m.role for m in sent[0].messages] == ["system", "user"]
    # Every message is told once, whatever was sent again.
    journal = Journal.open(llm)
    last = journal.steps(AskPlanner, 1)
    journal.close()
    told = sum(len(part.messages) for part in sent)
    assert sent[-1].earlier + len(sent[-1].messages) == told
    assert len(last) > len(turns)  # the second attempt of the round is another event
    words = {part.label: part.text for part in turns[2].parts if part.kind == "words"}
    assert words == {"thought": THOUGHT, "said": WORDS, "why": WRONG["rationale"]}
    assert any("tokens read" in fact for fact in turns[0].facts)
    assert "2 attempts" in turns[1].facts
    attempts = next(
        part for part in turns[1].parts if part.kind == "table" and "attempt" in part.title
    )
    assert [row[0] for row in attempts.rows] == ["http_503", "accepted"]


def test_the_money_of_all_calls_is_what_the_run_says_it_spent(llm):
    from eval.chat.prices import Prices
    from eval.chat.reply import Attempt

    journal = Journal.open(llm)
    calls = journal.steps(AskPlanner)
    journal.close()
    prices = Prices(input=0.15, output=0.6)
    total = 0
    for call in calls:
        attempts = [Attempt.model_validate(a) for a in call.result.completion["attempts"]]
        total += money_of(attempts, prices)
    assert total / 1e6 == pytest.approx(report_data(llm).spending["money"].used)
    assert total > 0


def test_a_wrong_plan_is_shown_as_a_change_and_its_faults_beside_their_fields(llm):
    turns = planned(llm).turns
    repair = next(turn for turn in turns if turn.kind == "repair")
    submitted = turns[turns.index(repair) - 1]
    change = next(part for part in submitted.parts if part.kind == "change")
    moved = {move.path: (move.before, move.after) for move in change.moves}
    assert moved["ratios.benign"][1] == 0.9
    assert moved["ratios.guard"][1] is None
    assert not [path for path in moved if path.startswith("bucket_weights")]
    wrong = {move.path: move for move in repair.parts[0].moves}
    assert wrong["ratios.elsewhere"].problems == ["Extra inputs are not permitted"]
    assert wrong["ratios.guard"].problems == ["Field required"]
    assert wrong["ratios.guard"].before == moved["ratios.guard"][0]
    assert repair.failed


def test_a_persons_words_stand_at_the_decision_and_the_outcome_beside_the_forecast(llm):
    entries = story_of(llm, 1).chapters[0].entries
    decided = [entry for entry in entries if entry.kind == "decided"]
    assert [entry.title for entry in decided] == ["reject by ann", "approve by ann"]
    assert decided[0].failed
    assert decided[0].parts[0].text == REASON
    measured = next(entry for entry in entries if entry.kind == "measured")
    bars, outcome = measured.parts[:2]
    forecast = report_data(llm).rounds[1].forecast
    assert [row[0] for row in outcome.rows] == [line.objective for line in forecast]
    assert [row[2] for row in outcome.rows] == [f"{line.actual:+.2f}" for line in forecast]
    assert len(bars.bars) == 2


def test_the_surrogate_tells_what_it_fitted_searched_and_why_the_winner_won(root):
    told = story_text(story_of(root / "profile", 1), 200)
    assert re.search(r"fitted how \d+ slices answered to tokens, from \d+ measured mixtures", told)
    searched = re.search(r"searched [\d,]+ mixtures: the best is worth (-?\d+\.\d+)", told)
    assert f"expected to gain most (value {searched[1]}" in told
    rows = [line.split() for line in told.splitlines() if searched[1] in line]
    assert any(row[0] == "1" for row in rows)
    assert "last plan" in told
    assert "it is ahead of the next that differs" in told


# -- everywhere the same ---------------------------------------------------------------------------


def test_page_terminal_and_markdown_say_the_same_in_the_same_order(root, llm):
    web = page.client(root)
    shown = titles(web.get("/run/llm/round/1").text)
    story = story_of(llm, 1)
    told = [entry.id for entry in flat(story.chapters[0].entries)]
    assert [id_ for id_, _ in shown] == told
    text = story_text(story, 10_000)
    assert re.findall(r"^ +(\d+(?:\.\d+)?)  ", text, re.MULTILINE) == told
    markdown = web.get("/run/llm/round/1/markdown").text
    assert re.findall(r"^#{3,4} (\d+(?:\.\d+)?) ", markdown, re.MULTILINE) == told
    for entry in flat(story.chapters[0].entries):
        assert entry.title in text
        title = dict(shown)[entry.id].removeprefix("! ")
        assert title == entry.title.replace("_", " ")


def test_raw_json_is_never_shown_first(root):
    web = page.client(root)
    for run in ("llm", "profile"):
        html = web.get(f"/run/{run}/round/1").text
        closed = re.sub(r"<details(?! open).*?</details>", "", html, flags=re.DOTALL)
        shown = unescape(re.sub(r"<.*?>", "", closed))
        assert "{" not in shown
        assert '": ' not in shown
        raw = re.findall(r'<details class="part raw">', html)
        # The record of a conclusion is its words.
        said = [title for _, title in titles(html) if title == "concluded"]
        assert len(raw) == len(titles(html)) - len(said)


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("run", ["llm", "profile"])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(root, run, width):
    story = story_of(root / run)
    text = story_text(story, width)
    assert max(len(line) for line in text.splitlines()) <= width
    squeezed = "".join(text.split())
    for chapter in story.chapters:
        for entry in flat(chapter.entries):
            assert "".join(entry.title.split()) in squeezed
            full = "".join(entry_text(entry, width, full=True).split())
            for part in entry.parts:
                if part.kind == "table":
                    cells = ["".join(cell.split()) for row in part.rows for cell in row]
                    # A cell that takes several lines stands beside its neighbours' pieces.
                    assert all(cell[:6] in full for cell in cells)


def test_what_is_folded_in_the_terminal_is_shown_for_one_event(llm):
    turn = next(turn for turn in planned(llm).turns if turn.kind == "model")
    folded, full = entry_text(turn, 100), entry_text(turn_of(llm, turn.id), 100, full=True)
    assert "+ what the model was sent" in folded
    assert "system:" in full
    assert len(full) > 5 * len(folded)
    for unknown in ("x", "1.x", "99999", f"{turn.seq}.999", ""):
        with pytest.raises(UsageError, match=r"event|turn"):
            turn_of(llm, unknown)


def test_every_event_and_turn_has_an_address_that_stays(root, llm):
    web = page.client(root)
    html = web.get("/run/llm/round/1").text
    links = re.findall(r'class="anchor" href="([^"]+)"', html)
    assert len(links) == len(titles(html)) == len(set(links))
    for link in links:
        path, _, anchor = link.partition("#")
        answer = web.get(path)
        assert answer.status_code == 200
        assert f'id="{anchor}"' in answer.text
    copies = re.findall(r'class="copy" href="([^"]+)"', html)
    for copy in copies[:5]:
        answer = web.get(unescape(copy))
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text.startswith("### ")
    assert web.get("/run/llm/event/99999/markdown").status_code == 404


def test_the_json_is_what_its_schema_says(llm):
    events = trace_data(llm)
    schema = schema_of("trace")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(events, schema)
    assert one_event(llm, events[3]["seq"]) == events[3]
    for broken in ({**events[0], "seq": "1"}, {**events[0], "kind": "unheard_of"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([broken], schema)
    kinds = schema["items"]["discriminator"]["mapping"]
    assert {event["kind"] for event in events} <= set(kinds)


# -- finding things --------------------------------------------------------------------------------


def test_search_and_filters_find_turns_of_the_whole_run(root, llm):
    web = page.client(root)

    def found(**asked):
        return titles(web.get("/run/llm/trace", params=asked).text)

    by_word = found(q="MORE OF EVERYTHING")
    # Where it was said, and where it was sent again.
    assert by_word[0][1].endswith("submitted a plan")
    assert all("the model, call" in title for _, title in by_word)
    failed = found(failed=1)
    assert any(title.startswith("! repair") for _, title in failed)
    assert all(title.startswith("!") for _, title in failed)
    story = story_of(llm)
    every = [entry for chapter in story.chapters for entry in flat(chapter.entries)]
    tools = found(kind="tool")
    assert [id_ for id_, _ in tools] == [e.id for e in every if e.kind == "tool"]
    about = found(objective="safety", kind="tool")
    assert 0 < len(about) < len(tools)
    assert found(q="nobody said this") == []
    overview = web.get("/run/llm/trace").text
    assert titles(overview) == []
    assert overview.count("data-load") == len(story.chapters)


def test_the_time_bar_shows_what_took_how_long(llm):
    journal = Journal.open(llm)
    counts = {kind: seconds for kind, _, seconds in journal.counts(1)}
    journal.close()
    (chapter,) = story_of(llm, 1).chapters
    took = {span.kind: span.seconds for span in chapter.spans}
    assert took["plan"] == counts["plan"] > 0
    assert [span.kind for span in chapter.spans][:3] == ["plan", "curate", "train"]
    assert "plan_call" not in took  # part of planning


# -- a file to hand on -----------------------------------------------------------------------------


def test_the_file_is_whole_and_asks_nobody(llm, tmp_path):
    write_trace(story_of(llm), tmp_path / "trace.html")
    text = (tmp_path / "trace.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert "default-src 'none'" in text
    for said in (THOUGHT, WORDS, REASON, WRONG["rationale"]):
        assert said in unescape(text)


def test_without_texts_nothing_that_a_model_or_a_person_wrote_is_in_the_file(llm, tmp_path):
    write_trace(story_of(llm), tmp_path / "trace.html", with_texts=False)
    text = unescape((tmp_path / "trace.html").read_text())
    whole = story_of(llm)
    written = [THOUGHT, WORDS, REASON, WRONG["rationale"]]
    for chapter in whole.chapters:
        for entry in flat(chapter.entries):
            for part in entry.parts:
                if part.kind == "messages":
                    written += [message.text for message in part.messages if message.text]
    assert len(written) > 20
    assert not [said for said in written if said in text]
    assert "text left out" in text
    assert "the record as JSON" not in text
    assert titles(text) == [
        (e.id, ("! " if e.failed else "") + e.title.replace("_", " "))
        for chapter in whole.chapters
        for e in flat(chapter.entries)
    ]


def test_markdown_cannot_be_broken_by_what_it_quotes(llm):
    turn = planned(llm).turns[0]
    hostile = "```\n# not a heading\n````"
    parts = [part for part in turn.parts if part.kind == "words"]
    shown = entry_markdown(
        turn.model_copy(update={"parts": [parts[0].model_copy(update={"text": hostile})]})
    )
    fences = [line for line in shown.splitlines() if line.startswith("`````")]
    assert fences == ["`````text", "`````"]


# -- in a browser ----------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_keys_filter_and_copy_in_a_browser(llm, tmp_path):
    from playwright.sync_api import sync_playwright

    write_trace(story_of(llm), tmp_path / "trace.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 390, "height": 800})
        tab = context.new_page()
        errors = []
        tab.on("console", lambda message: errors.append(message.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto((tmp_path / "trace.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390

        def current():
            return tab.evaluate("document.activeElement.id")

        tab.keyboard.press("j")
        first = current()
        tab.keyboard.press("j")
        assert current() != first
        tab.keyboard.press("k")
        assert current() == first == "e1"
        tab.keyboard.press("?")
        assert tab.locator("dialog[open]").count() == 1
        tab.keyboard.press("Escape")
        assert tab.locator("dialog[open]").count() == 0
        tab.keyboard.press("/")
        assert current() == "q"
        tab.keyboard.type("more of everything")
        tab.keyboard.press("Enter")
        hits = tab.locator("#found").inner_text()
        total = tab.locator(".entry").count()
        assert re.fullmatch(rf"\d+ of {total}", hits)
        assert 0 < int(hits.split()[0]) < total
        shown = tab.locator(".entry.k-model:visible").count()
        assert 0 < shown < tab.locator(".entry.k-model").count()
        tab.fill("#q", "")
        tab.check("input[name=failed]")
        assert tab.locator(".entry.k-repair:visible").count() > 0
        assert tab.locator(".entry.k-curated:visible").count() == 0
        browser.close()
    assert errors == []


def test_a_run_with_the_bases_floor_and_several_methods_is_told_whole(tmp_path):
    objectives = ("over_refusal", "instruction_following")
    floors = [f"objectives.{name}.floor=base" for name in objectives]
    made = StandIn.make("rounds=1", *ALL_METHODS, *floors, per_slice=4, objectives=objectives)
    made.create(tmp_path / "run")
    made.run(tmp_path / "run", Witness(tmp_path / "witness"))
    story = story_of(tmp_path / "run")
    entries = [entry for chapter in story.chapters for entry in chapter.entries]
    notes = []
    for entry in entries:
        for part in entry.parts:
            notes += [bar.note for bar in part.bars] if part.kind == "bars" else []
    assert any("floor base" in note for note in notes)
    assert any(entry.title.startswith("paired answers of") for entry in entries)
    spans = {span.name: span for span in spans_of(tmp_path / "run")}
    assert spans["form judged answers"].attributes["mosaic.answers"] > 0
    journal = Journal.open(tmp_path / "run")
    formed = [step.result for step in journal.steps(FormWishes)]
    journal.close()
    named = [span for span in spans_of(tmp_path / "run") if span.name == "form wishes"]
    assert [span.attributes["mosaic.rows"] for span in named] == [one.rows for one in formed]
    assert formed
