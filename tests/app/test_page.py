"""The page: refused without its token, and used by a person in a real browser where there is one."""

import re
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest

from agent.approval import HumanApprover
from benchmarks import page
from benchmarks.standins import StandIn
from benchmarks.waiting import trainings, until_asked, waiting_run
from mosaic.app.decisions import pending
from mosaic.app.web.guard import TOKEN_FILE, csrf_of, new_token

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None
)


@pytest.fixture
def standin():
    made = StandIn.make("rounds=3", per_slice=4)
    made.approver = HumanApprover()
    return made


def test_the_quick_page_figures_are_met():
    assert [row for row in page.page(True) if row["met"] is False] == []


def test_the_token_file_is_the_users_alone(tmp_path):
    first = new_token(tmp_path)
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    assert new_token(tmp_path) != first


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
    answer = web.post(
        "/run/asked/resume", headers={"origin": page.ORIGIN, "x-csrf-token": csrf_of(page.TOKEN)}
    )
    assert answer.status_code == 409
    assert "--control" in answer.text


def test_a_resume_that_the_page_started_and_that_fails_says_so_there(standin, tmp_path):
    waiting_run(standin, tmp_path, "asked")  # with inputs that no real controller finds again
    web = page.client(tmp_path, control=True)
    before = web.get("/run/asked/live").text
    headers = {"origin": page.ORIGIN, "x-csrf-token": csrf_of(page.TOKEN)}
    assert web.post("/run/asked/resume", headers=headers).status_code == 303
    ended = time.monotonic() + 120
    while (
        "ended with exit code" not in (text := web.get("/run/asked/live").text)
        and time.monotonic() < ended
    ):
        time.sleep(0.5)
    assert "The last start ended with exit code" in text
    assert "ended with exit code" not in before


def test_a_decision_on_another_plan_or_without_a_reason_is_refused(standin, tmp_path):
    waiting_run(standin, tmp_path, "asked")
    web = page.client(tmp_path)
    headers = {"origin": page.ORIGIN, "x-csrf-token": csrf_of(page.TOKEN)}
    for form in (
        {"kind": "approve", "plan_digest": "0" * 64},
        {
            "kind": "reject",
            "plan_digest": pending(tmp_path / "asked")["plan_digest"],
            "reason": " ",
        },
        {"kind": "approve"},
        {"kind": "delete"},
    ):
        assert web.post("/run/asked/decide", headers=headers, data=form).status_code == 409
    assert pending(tmp_path / "asked")


def test_a_run_of_any_name_is_opened_and_decided_from_its_links(standin, tmp_path):
    name = "exp#1 50% off?"
    waiting_run(standin, tmp_path, name)
    web = page.client(tmp_path)
    link = re.search(r'class="card"><a href="([^"]+)"', web.get("/").text)[1]
    assert web.get(link).status_code == 200
    action = re.search(r'action="([^"]+/decide)"', web.get(link + "/live").text)[1]
    form = {"kind": "approve", "plan_digest": pending(tmp_path / name)["plan_digest"]}
    headers = {"origin": page.ORIGIN, "x-csrf-token": csrf_of(page.TOKEN)}
    done = web.post(action, headers=headers, data=form)
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
    dataset = next(iter(pending(folder)["plan"]["ratios"]))
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
    assert pending(folder)["attempt"] == 2
    tab.wait_for_selector(".tree:has-text('less of the first')", state="attached")

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
