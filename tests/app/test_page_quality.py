"""What a browser measures of the pages: accessibility by axe, and that a live page does not jump."""

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.approval import AutoApprover, HumanApprover
from benchmarks.standins import StandIn, Witness
from benchmarks.waiting import waiting_run
from mosaic.app.decisions import note
from mosaic.app.views.html import write_html
from mosaic.app.views.report_data import report_data
from mosaic.core.journal import Journal
from mosaic.lab.server import ScriptedServer

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None
)
# Adds up layout shifts as Chromium scores them, those right after an input left out.
SHIFTS = """
window.shifts = 0;
window.moved = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    if (entry.hadRecentInput) continue;
    window.shifts += entry.value;
    const what = entry.sources.map(({ node, previousRect, currentRect }) =>
      `${node && node.nodeName} ${node && (node.textContent || "").trim().slice(0, 40)}: ${previousRect.y} to ${currentRect.y}`);
    window.moved.push(`${entry.value.toFixed(3)} ${what.join(" | ")}`);
  }
}).observe({ type: "layout-shift", buffered: true });
"""
MAX_SHIFT = 0.1
NO_FLOORS = ("objectives.safety.floor=null", "objectives.over_refusal.floor=null")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Runs: one that waits, two that are finished, one that a model planned; and the stand-in behind them."""
    root = tmp_path_factory.mktemp("runs")
    standin = StandIn.make("rounds=3", per_slice=4)
    waiting = replace(standin, approver=HumanApprover())
    waiting_run(waiting, root, "asked")
    for name in ("one", "two"):
        ready = replace(standin, approver=AutoApprover())
        ready.create(root / name)
        ready.run(root / name, Witness(root / f"{name}.witness"))
    with ScriptedServer() as server:
        model = ("planner.kind=llm", f"planner.chat.base_url={server.url}")
        talking = StandIn.make("rounds=1", *model, *NO_FLOORS, per_slice=4)
        talking.approver = AutoApprover()
        talking.create(root / "talk")
        note(root / "talk", "Mind the refusals.", "ann")
        talking.run(root / "talk", Witness(root / "talk.witness"))
    return root, standin


@pytest.fixture(scope="module")
def address(world):
    started = subprocess.Popen(
        [sys.executable, "-m", "mosaic", "view", str(world[0]), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield started.stdout.readline().strip()
    started.terminate()
    started.wait()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here: the browser tests were skipped")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page_in_light_and_dark(world, address, browser, scheme, tmp_path):
    axe = pytest.importorskip("axe_playwright_python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()
    root, _ = world
    write_html(root / "one", report_data(root / "one"), tmp_path / "report.html")
    site = address.split("/login")[0]
    journal = Journal.open(root / "talk")
    planned = journal.events(kind="planned")[0].seq
    journal.close()
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    tab = context.new_page()
    tab.goto(address)
    pages = {
        "list": f"{site}/",
        "run": f"{site}/run/one",
        "approval": f"{site}/run/asked",
        "cell": f"{site}/run/one",
        "compare": f"{site}/compare?run=one&run=two",
        "round": f"{site}/run/one/round/1",
        "conversation": f"{site}/run/talk/round/1",
        "event": f"{site}/run/talk/event/{planned}",
        "trace": f"{site}/run/talk/trace",
        "missing": f"{site}/run/nosuch",
        "report": (tmp_path / "report.html").as_uri(),
    }
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        for name, url in pages.items():
            tab.goto(url)
            if name == "cell":
                tab.click("button.cell >> nth=0")
                tab.wait_for_selector("#cell details")
                tab.click("#cell summary >> nth=0")
            tab.evaluate(script)
            found = tab.evaluate("() => axe.run()")["violations"]
            told = [(one["id"], one["nodes"][0]["html"]) for one in found]
            assert told == [], f"{name}, {width} pixels"
            beyond = tab.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            assert beyond <= 0, f"{name} is wider than {width} pixels"
    context.close()


@pytest.mark.slow
def test_a_live_page_shifts_little_keeps_the_focus_and_shows_no_blank_plot(world, address, browser):
    root, standin = world
    folder = root / "live"
    running = replace(standin, approver=AutoApprover())
    running.create(folder)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.add_init_script(SHIFTS)
    tab.goto(address)
    tab.goto(address.split("/login")[0] + "/run/live")
    tab.evaluate("""() => setInterval(() => {
      const blank = [...document.querySelectorAll("figure img")].some((img) => !img.complete);
      window.blank = window.blank || blank;
    }, 20)""")
    tab.focus(".top .brand")
    thread = threading.Thread(target=running.run, args=(folder, Witness(root / "live.witness")))
    thread.start()
    ends = time.monotonic() + 240
    while "finished" not in tab.inner_text("h1") and time.monotonic() < ends:
        tab.wait_for_timeout(300)
    thread.join()
    assert "finished" in tab.inner_text("h1")
    assert tab.evaluate("() => document.activeElement.className") == "brand"
    assert not tab.evaluate("() => window.blank === true")
    assert tab.evaluate("() => window.shifts") <= MAX_SHIFT, tab.evaluate("() => window.moved")
    tab.click("text=Show the result")
    tab.wait_for_selector("text=against the pools' own proportions")
    context.close()
