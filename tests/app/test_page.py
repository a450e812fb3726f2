"""The page: refused without its token, and used by a person in a real browser where there is one."""

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from html import unescape

import pytest

from agent.approval import AutoApprover, HumanApprover
from benchmarks import page
from benchmarks.standins import PREFERENCES, StandIn, Witness
from benchmarks.waiting import trainings, until_asked, waiting_run
from mosaic.app import runs
from mosaic.app.decisions import approve, pending
from mosaic.app.views.html import write_html
from mosaic.app.views.report_data import report_data, status_data
from mosaic.app.web import pages
from mosaic.app.web.guard import DAY, KEPT_DAYS, TOKEN_FILE, csrf_of, new_token, token_of
from mosaic.app.wiring import run_digests
from mosaic.core.errors import HeldError, UsageError, WaitingError
from mosaic.core.journal import Journal
from mosaic.core.tables import FILE

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None
)


@pytest.fixture
def standin():
    made = StandIn.make("rounds=3", per_slice=4)
    made.approver = HumanApprover()
    return made


HEADERS = {"origin": page.ORIGIN, "x-csrf-token": csrf_of(page.TOKEN)}


def recorded(folder):
    """How many decisions of persons a run holds."""
    with closing(sqlite3.connect(folder / FILE)) as db:
        return db.execute("select count(*) from decisions").fetchone()[0]


def form_fields(text):
    """What a browser would send for the form as it stands in a page: the fields and their values."""
    form = re.search(r'<form[^>]+id="decide".*?</form>', text, re.DOTALL)[0]
    found = {}
    for field in re.findall(r"<input[^>]+>", form):
        name, value = (re.search(rf'{key}="([^"]*)"', field)[1] for key in ("name", "value"))
        found[unescape(name)] = unescape(value)
    return found


def test_the_quick_page_figures_are_met():
    assert [row for row in page.page(True) if row["met"] is False] == []


def test_the_token_file_is_the_users_alone(tmp_path):
    first = new_token(tmp_path)
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    assert new_token(tmp_path) != first


def test_the_token_outlives_a_restart_so_that_links_and_open_pages_do(tmp_path):
    first = token_of(tmp_path)
    assert token_of(tmp_path) == first
    path = tmp_path / TOKEN_FILE
    path.unlink()
    assert token_of(tmp_path) != first


@pytest.mark.parametrize("fault", ["old", "future", "readable", "link", "cut", "directory"])
def test_a_token_that_is_not_this_users_alone_is_replaced(tmp_path, fault):
    path, known = tmp_path / TOKEN_FILE, "k" * 43
    if fault == "link":
        (tmp_path / "elsewhere").write_text(known)
        (tmp_path / "elsewhere").chmod(0o600)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text(known[:10] if fault == "cut" else known)
        path.chmod(0o644 if fault == "readable" else 0o600)
    if fault in ("old", "future"):
        days = (KEPT_DAYS + 1) * DAY * (-1 if fault == "old" else 1)
        os.utime(path, (time.time() + days, time.time() + days))
    if fault == "directory":
        path.unlink()
        path.mkdir()
        with pytest.raises(UsageError, match="view-token"):
            token_of(tmp_path)
        return
    found = token_of(tmp_path)
    assert found != known
    assert token_of(tmp_path) == found
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_the_log_in_link_sets_a_strict_cookie_and_pages_carry_a_policy(tmp_path):
    web = page.client(tmp_path, token=False)
    answer = web.get(f"/login?token={page.TOKEN}")
    assert answer.status_code == 303
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]
    policy = page.client(tmp_path).get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert web.get("/login?token=wrong").status_code == 403


def test_only_a_page_with_control_may_start_anything(standin, tmp_path):
    waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    answer = web.post("/run/asked/resume", headers=HEADERS)
    assert answer.status_code == 409
    assert "--control" in answer.text


def test_a_resume_that_the_page_started_and_that_fails_says_so_there(standin, tmp_path):
    folder, _ = waiting_run(standin, tmp_path, "asked")
    held = Journal.open(folder)
    held.acquire()  # so that no other controller can go on
    web = page.client(tmp_path, control=True)
    before = web.get("/run/asked/live").text
    assert web.post("/run/asked/resume", headers=HEADERS).status_code == 303
    ended = time.monotonic() + 120
    text = ""
    while "ended with exit code" not in text and time.monotonic() < ended:
        text = web.get("/run/asked/live").json()["sections"]["head"]
        time.sleep(0.5)
    held.close()
    assert f"The last start ended with exit code {HeldError.exit_code}" in text
    assert "is held by" in text
    assert "ended with exit code" not in before


def test_a_decision_without_its_question_or_reason_is_refused(standin, tmp_path):
    folder, _ = waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    asked = pending(folder).request
    for form in (
        {"kind": "approve", "request": "0" * 64},
        {"kind": "approve", "request": asked[:6]},
        {"kind": "approve"},
        {"kind": "reject", "request": asked, "reason": " "},
        {"kind": "delete", "request": asked},
        {**form_fields(web.get("/run/asked").text), "kind": "edit", "ratios.benign": "much"},
    ):
        assert web.post("/run/asked/decide", headers=HEADERS, data=form).status_code == 409
    assert pending(folder).request == asked
    assert recorded(folder) == 0


def accept(folder, changed):
    """Accept another config for a run, as `resume --accept-changes` does."""
    journal = Journal.open(folder)
    journal.acquire()
    digests = run_digests(changed.config, changed.inputs)
    lines = runs.changes(journal, changed.config, digests)
    runs.accept_changes(journal, changed.config, digests, lines)
    journal.close()


def an_earlier_round(root):
    """A run whose second round asks about the very plan of the first, and the tab of the first."""
    standin = StandIn.make("rounds=3", "planner.kind=static", per_slice=4)
    standin.approver = HumanApprover()
    folder, witness = waiting_run(standin, root, "asked")
    tab = form_fields(page.client(root).get("/run/asked").text)
    first = pending(folder)
    approve(folder, first.request, by="x")
    until_asked(standin, folder, witness)
    assert pending(folder).plans[0].plan_digest == first.plans[0].plan_digest
    return folder, tab


def a_changed_config(root):
    """A run that asks again after its config changed, and the tab from before."""
    standin = StandIn.make("rounds=1", per_slice=4)
    changed = StandIn.make("rounds=1", "methods.sft.learning_rate=0.009", per_slice=4)
    standin.approver = changed.approver = HumanApprover()
    folder, witness = waiting_run(standin, root, "asked")
    tab = form_fields(page.client(root).get("/run/asked").text)
    plan = pending(folder).plans[0].plan_digest
    accept(folder, changed)
    until_asked(changed, folder, witness)
    assert pending(folder).plans[0].plan_digest == plan
    return folder, tab


def another_run_of_the_name(root):
    """A run that asks about the same plan as a deleted run of its name, and the tab of that one."""
    standin = StandIn.make("rounds=1", per_slice=4)
    standin.approver = HumanApprover()
    folder, witness = waiting_run(standin, root, "asked")
    tab = form_fields(page.client(root).get("/run/asked").text)
    plan = pending(folder).plans[0].plan_digest
    shutil.rmtree(folder)
    witness.path.unlink()
    waiting_run(standin, root, "asked")
    assert pending(folder).plans[0].plan_digest == plan
    return folder, tab


@pytest.mark.parametrize("stale", [an_earlier_round, a_changed_config, another_run_of_the_name])
def test_a_stale_tab_decides_nothing_and_what_was_typed_is_kept(stale, tmp_path):
    folder, tab = stale(tmp_path)
    waits, before = pending(folder), recorded(folder)
    web = page.client(tmp_path)
    field = next(name for name in tab if name.startswith("ratios."))
    for kind in ("approve", "edit", "reject"):
        typed = {**tab, "kind": kind, "reason": "take <less> of it", field: "12.3"}
        answer = web.post("/run/asked/decide", headers=HEADERS, data=typed)
        assert answer.status_code == 409
        assert "another question than the one that waits now" in answer.text
        assert "take &lt;less&gt; of it" in answer.text
        assert re.search(re.escape(field) + r"</th><td[^>]*>12.3<", answer.text)
        assert f"round {waits.round}" in answer.text
        assert waits.request[:12] in answer.text
        assert 'href="/run/asked#ask"' in answer.text
    checked = web.post("/run/asked/check", headers=HEADERS, data=tab).json()["violations"]
    assert "another question" in checked[0]["hint"]
    assert recorded(folder) == before
    assert pending(folder).request == waits.request

    fresh = form_fields(web.get("/run/asked").text)
    done = web.post("/run/asked/decide", headers=HEADERS, data={**fresh, "kind": "approve"})
    assert done.status_code == 303
    assert recorded(folder) == before + 1


def test_an_answer_after_the_decision_was_made_elsewhere_is_kept_too(standin, tmp_path):
    folder, _ = waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    tab = form_fields(web.get("/run/asked").text)
    approve(folder, tab["request"], by="somebody faster")
    typed = {**tab, "kind": "reject", "reason": "too much of one"}
    answer = web.post("/run/asked/decide", headers=HEADERS, data=typed)
    assert answer.status_code == 409
    assert "too much of one" in answer.text
    assert "No question waits" in answer.text


def test_an_edited_plan_that_breaks_a_limit_is_refused_with_its_shares(standin, tmp_path):
    folder, _ = waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    tab = form_fields(web.get("/run/asked").text)
    ratios = [name for name in tab if name.startswith("ratios.")]
    typed = {**tab, "kind": "edit", **dict.fromkeys(ratios, "0"), ratios[0]: "100"}
    answer = web.post("/run/asked/decide", headers=HEADERS, data=typed)
    assert answer.status_code == 409
    assert "breaks constraints" in answer.text
    assert "ratios.benign" in answer.text
    assert recorded(folder) == 0


def test_the_form_shows_and_takes_the_shares_of_methods(tmp_path):
    objectives = ("over_refusal", "instruction_following")
    standin = StandIn.make("rounds=1", *PREFERENCES, per_slice=2, objectives=objectives)
    standin.approver = HumanApprover()
    folder, _ = waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    tab = form_fields(web.get("/run/asked").text)
    assert (tab["method_shares.sft"], tab["method_shares.dpo"]) == ("50.0", "50.0")
    wrong = {**tab, "kind": "edit", "method_shares.sft": "70"}
    answer = web.post("/run/asked/decide", headers=HEADERS, data=wrong)
    assert answer.status_code == 409
    assert "method_shares: the shares sum to 120.0 %" in answer.text
    typed = {**wrong, "method_shares.dpo": "30"}
    assert web.post("/run/asked/decide", headers=HEADERS, data=typed).status_code == 303
    with closing(Journal.open(folder)) as journal:
        decision = journal.decision(1, tab["request"])
    (plan,) = decision.edited
    assert plan.method_shares == {"sft": 0.7, "dpo": 0.3}


def test_the_form_shows_the_prediction_beside_the_planners_own_expectation(tmp_path):
    standin = StandIn.make("rounds=2", "planner.kind=profile", per_slice=4)
    standin.approver = HumanApprover()
    folder, _ = waiting_run(standin, tmp_path, "asked")
    text = page.client(tmp_path).get("/run/asked").text
    shown = pending(folder).plans[0]
    assert shown.predicted
    for prediction in shown.predicted:
        row = re.search(rf"{prediction.objective.replace('_', ' ')}</th>.*?</tr>", text, re.DOTALL)
        expected = shown.expected.get(prediction.objective)
        for figure in (prediction.change, prediction.low, expected):
            assert ("-" if figure is None else f"{figure:+.2f}") in row[0]


def test_an_update_sends_only_the_sections_that_changed(standin, tmp_path):
    folder, witness = waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    whole = web.get("/run/asked/live").json()
    have = " ".join(f"{name}:{mark}" for name, mark in whole["marks"].items())
    assert web.get("/run/asked/live", params={"have": have}).json()["sections"] == {}
    approve(folder, pending(folder).request, by="x")
    after = web.get("/run/asked/live", params={"have": have}).json()
    assert set(after["sections"]) == {"head", "approval"}
    assert after["mark"] != whole["mark"]
    until_asked(standin, folder, witness)
    assert "rounds" in web.get("/run/asked/live", params={"have": have}).json()["sections"]


def test_reasons_are_loaded_in_parts_that_have_addresses_of_their_own(
    standin, tmp_path, monkeypatch
):
    monkeypatch.setattr(pages, "EVENTS", 2)
    folder, _ = waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    journal = Journal.open(folder)
    events = journal.events(1)
    journal.close()
    text, seen = web.get("/run/asked").text, 0
    for _ in range(len(events)):
        seen += text.count('<li><details data-key="') + text.count('<li><span class="leaf">')
        earlier = re.search(r'href="([^"]+before=[^"]+)"', text)
        if earlier is None:
            break
        seen -= 1  # the line that loads the earlier ones
        text = web.get(unescape(earlier[1]) + "&part=1").text
    assert seen >= len(events)
    planned = next(event for event in events if event.kind == "planned")
    assert "rationale" in web.get(f"/run/asked/event/{planned.seq}").text
    assert "MOSAIC" in web.get("/run/asked/round/1").text
    assert "<title>" not in web.get("/run/asked/round/1?part=1").text
    for missing in ("/run/asked/round/9", "/run/asked/event/100000"):
        assert web.get(missing).status_code == 404


def test_the_list_of_runs_says_what_status_says(standin, tmp_path):
    folder, witness = waiting_run(standin, tmp_path, "asked")
    for _ in range(3):
        status = status_data(folder)
        line = pages.headline(folder)
        assert (line.state, line.rounds) == (status.state, status.rounds)
        assert line.tokens_left == status.tokens_left
        approve(folder, pending(folder).request, by="x")
        assert pages.headline(folder).state == status_data(folder).state == "decided"
        with suppress(WaitingError):
            standin.run(folder, witness)
    assert pages.headline(folder).state == status_data(folder).state == "finished"


def test_rounds_that_were_decided_after_an_audit_are_said(standin, tmp_path):
    standin.approver = AutoApprover()
    folder, witness = tmp_path / "again", Witness(tmp_path / "witness")
    standin.create(folder)
    standin.run(folder, witness)
    web = page.client(tmp_path)
    said = "opened after round 3, and rounds were decided after that: 4"
    assert "opened once, at the end, and no decision saw them" in web.get("/run/again").text
    longer = StandIn.make("rounds=4", per_slice=4)
    accept(folder, longer)
    longer.run(folder, witness)
    report = report_data(folder)
    assert [opening.decided_after for opening in report.audits] == [[4], []]
    text = web.get("/run/again").text
    assert said in text
    assert "opened 2 times" in text
    write_html(folder, report, tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text()
    assert said in written
    assert "opened 2 times" in written


def test_a_run_of_any_name_is_opened_and_decided_from_its_links(standin, tmp_path):
    name = "exp#1 50% off?"
    waiting_run(standin, tmp_path, name)
    web = page.client(tmp_path)
    link = re.search(r'scope="row"[^>]*><a href="([^"]+)"', web.get("/").text)[1]
    text = web.get(link).text
    action = re.search(r'action="([^"]+/decide)"', text)[1]
    for load in re.findall(r'data-load>.*?href="([^"]+)"', text):
        assert web.get(unescape(load)).status_code == 200
    form = {**form_fields(text), "kind": "approve"}
    done = web.post(action, headers=HEADERS, data=form)
    assert done.status_code == 303
    assert web.get(done.headers["location"]).status_code == 200


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here: the browser tests were skipped")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def served(tmp_path):
    started = subprocess.Popen(
        [sys.executable, "-m", "mosaic", "view", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield started.stdout.readline().strip()
    started.terminate()
    started.wait()


def resumed(standin, folder, witness):
    """The controller in a thread, until it asks again."""
    thread = threading.Thread(target=until_asked, args=(standin, folder, witness))
    thread.start()
    return thread


def test_a_person_approves_edits_and_rejects_in_the_browser(standin, tmp_path, browser, served):
    folder, witness = waiting_run(standin, tmp_path, "asked")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    tab.goto(served)
    assert "waiting for approval" in tab.inner_text("main")
    tab.click("text=asked")
    tab.wait_for_selector("#decide")
    before = trainings(witness)

    # An edit beyond the limits is refused while it is typed, and cannot be sent.
    dataset = next(iter(pending(folder).plans[0].plan.ratios))
    field = tab.locator(f'input[name="ratios.{dataset}"]')
    field.fill("90")
    tab.wait_for_selector("#verdict.bad")
    assert "sum to" in tab.inner_text("#verdict")
    assert tab.is_disabled("#edit")
    assert tab.is_disabled("#approve")
    field.fill(field.evaluate("e => e.defaultValue"))
    tab.wait_for_selector("#approve:not([disabled])")

    tab.focus("#approve")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#decide", state="detached")
    thread = resumed(standin, folder, witness)
    tab.wait_for_selector("text=Round 2: a plan waits for you", timeout=20_000)
    thread.join()
    assert trainings(witness) == before + 1

    tab.click("#reject")
    tab.wait_for_selector("#verdict.bad")
    tab.fill("#reason", "less of the first")
    tab.click("#reject")
    tab.wait_for_selector("#decide", state="detached")
    thread = resumed(standin, folder, witness)
    tab.wait_for_selector("#decide", timeout=20_000)
    thread.join()
    assert pending(folder).attempt == 2
    tab.wait_for_selector(".tree:has-text('less of the first')", state="attached")
    tab.click(".tree summary:has-text('proposed plan') >> nth=0")
    tab.wait_for_selector(".tree li:has-text('ratios')", timeout=20_000)
    tab.click(".tree summary:has-text('base and calibration')")
    tab.wait_for_selector(".tree:has-text('calibrated')", timeout=20_000)

    tab.click("button.cell >> nth=0")
    tab.wait_for_selector("#cell details")
    assert tab.locator("#cell details[open]").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    small = browser.new_context(
        viewport={"width": 390, "height": 800}, color_scheme="dark"
    ).new_page()
    small.goto(served)
    small.goto(served.split("/login")[0] + "/run/asked")
    assert small.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems == []
