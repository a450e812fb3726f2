"""The page against those who should not use it: routes, cross-site requests, paths, text."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from fastapi import FastAPI
from starlette.routing import BaseRoute, Route
from starlette.testclient import TestClient

from agent.approval import HumanApprover
from agent.context import RunContext
from agent.planners.base import Planner
from benchmarks.durability import memory
from benchmarks.figures import Rows, figure
from benchmarks.standins import StandIn, StandInGenerator, Witness
from benchmarks.waiting import waiting_run
from mosaic.app.decisions import pending, reject
from mosaic.app.web.guard import LOGIN, cookie_of, csrf_of
from mosaic.app.web.server import create_app
from mosaic.core.errors import WaitingError
from mosaic.core.journal import Journal
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

PORT = 8765
TOKEN = "t" * 43
HOST = f"127.0.0.1:{PORT}"
ORIGIN = f"http://{HOST}"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")

_ASCENTS = (
    "../" * 4, "..%2f" * 4, "%2e%2e/" * 4, "....//" * 4, "/", "..\\" * 3, "%00/", "~/",
    "./.././../", "%252e%252e%252f" * 3,
)  # fmt: skip
_TREASURES = ("etc/passwd", "journal.sqlite", ".view-token", "lock", "objects")
TRAVERSALS = [ascent + treasure for ascent, treasure in itertools.product(_ASCENTS, _TREASURES)]
_MARKS = (
    "<script>x()</script>", "<img src=x onerror=x()>", "<svg onload=x()>",
    "</textarea><script>x()</script>", "\"><b>x", "' onmouseover='x()",
    "<iframe src=javascript:x()>",
    "{{7*7}}", "{% raw %}", "</blockquote><form action=//evil>", "<!--", "]]>",
    "<a href=javascript:x()>y</a>", "&lt;script&gt;", "\u202e<b>", "<style>*{display:none}</style>",
    "<details open ontoggle=x()>", "</pre></details>", "<base href=//evil>",
    "<meta http-equiv=refresh content=0>", "`onfocus=x() autofocus`", "<math><mi xlink:href=x>",
    "<input onfocus=x() autofocus>", "\\u003cscript\\u003e", "<marquee>",
)  # fmt: skip
# Each mark alone, and within a text of two lines.
XSS: list[str] = []
for _mark in _MARKS:
    XSS += [_mark, f"a {_mark} b\n{_mark}"]


def client(root: Path, control: bool = False, token: bool = True) -> TestClient:
    """A client of the page, with the token's cookie or without."""
    app = create_app(root, TOKEN, PORT, control)
    made = TestClient(app, base_url=ORIGIN, follow_redirects=False)
    if token:
        made.cookies.set(cookie_of(TOKEN), TOKEN)
    return made


def routes(app: FastAPI, name: str) -> Iterator[str]:
    """A concrete path for every route the application has."""
    route: BaseRoute
    for route in app.routes:
        if isinstance(route, Route):
            yield route.path.format(name=name, kind="scores", digest="0" * 64, number=1)


def without_token(root: Path, name: str) -> tuple[int, int]:
    """(requests, answers that are not a refusal) over every route and method."""
    plain = client(root, control=True, token=False)
    tried = open_ = 0
    for path, method in itertools.product([*routes(plain.app, name), "/nothing", LOGIN], METHODS):
        for headers in (
            {},
            {"cookie": f"{cookie_of(TOKEN)}=wrong"},
            {"authorization": f"Bearer {TOKEN}"},
            {"x-csrf-token": csrf_of(TOKEN)},
        ):
            answer = plain.request(method, path, headers=headers)
            refused = answer.status_code in (401, 403, 405, 421)
            tried += 1
            open_ += not refused or bool(answer.headers.get("set-cookie"))
    return tried, open_


def cross_site(root: Path, name: str) -> tuple[int, int]:
    """(requests, wrong answers) over host x origin x fetch site x csrf token.

    Only one combination of them may pass.
    """
    web = client(root, control=True)
    tried = wrong = 0
    hosts = (HOST, f"localhost:{PORT}", "evil.example", f"evil.example:{PORT}", "127.0.0.1:1")
    origins = (
        ORIGIN,
        f"http://localhost:{PORT}",
        "http://evil.example",
        "null",
        None,
        f"https://{HOST}",
    )
    sites = ("same-origin", "none", "cross-site", "same-site", None)
    tokens = (csrf_of(TOKEN), "", csrf_of("other"), None)
    for host, origin, site, csrf in itertools.product(hosts, origins, sites, tokens):
        headers = {"host": host}
        headers |= {"origin": origin} if origin is not None else {}
        headers |= {"sec-fetch-site": site} if site is not None else {}
        headers |= {"x-csrf-token": csrf} if csrf is not None else {}
        answer = web.post(f"/run/{name}/check", headers=headers, content="")
        allowed = (
            host in hosts[:2]
            and origin == f"http://{host}"
            and site in ("same-origin", "none", None)
            and csrf == tokens[0]
        )
        tried += 1
        wrong += (answer.status_code == 200) != allowed
    return tried, wrong


def traversals(root: Path, name: str) -> tuple[int, int]:
    """(requests, answers that hold anything but one of our pages)."""
    web = client(root)
    token = root / ".view-token"
    secret = token.read_bytes() if token.exists() else b"SQLite format 3"
    tried = leaked = 0
    for text in TRAVERSALS:
        for path in (
            f"/static/{text}",
            f"/run/{text}",
            f"/run/{name}/object/{text}",
            f"/run/{name}/plot/{text}.svg",
            f"/run/{text}/live",
        ):
            answer = web.get(path)
            tried += 1
            read = b"root:" in answer.content or secret in answer.content
            leaked += answer.status_code == 200 or read
    return tried, leaked


# The elements of a page in order, each with the names of its attributes.
Shape = list[tuple[str, tuple[str, ...]]]


class _Tree(HTMLParser):
    """Elements with the names of their attributes, in order; no text, no values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Shape = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def shape(html: str) -> Shape:
    """The shape of a page."""
    tree = _Tree()
    tree.feed(html)
    return tree.found


class _Talker:
    """Plans like another planner, with hostile words wherever a planner may say something."""

    kind = "talker"

    def __init__(self, planner: Planner, text: str) -> None:
        self.planner = planner
        self.text = text

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        (plan,) = self.planner.propose(observation, toolbox, n)
        toolbox.conclude(self.text)
        toolbox.record(self.text, {self.text: self.text}, self.text)
        return [plan.model_copy(update={"rationale": self.text})]


class _Babbler(StandInGenerator):
    """Answers everything with the same text."""

    def __init__(self, witness: Witness, text: str) -> None:
        super().__init__(witness)
        self.text = text

    def _answer(self, prompt: Prompt, name: str) -> Response:
        answer = super()._answer(prompt, name)
        return answer.model_copy(update={"answers": [self.text for _ in answer.answers]})


class Hostile(StandIn):
    """A stand-in whose planner, model and approver say `text`."""

    text = "plain"

    def context(self, folder: Path, journal: Journal, witness: Witness) -> RunContext:
        context = super().context(folder, journal, witness)
        context.planner = _Talker(context.planner, self.text)
        context.evaluator.generator = _Babbler(witness, self.text)
        return context


def _pages(root: Path, standin: Hostile, text: str) -> list[Shape]:
    """The shapes of all pages of a run in which planner, model and reviewer all say `text`."""
    standin.text = text
    folder, witness = waiting_run(standin, root, "hostile")
    reject(folder, pending(folder).request, reason=text, by=text)
    with contextlib.suppress(WaitingError):
        standin.run(folder, witness)
    web = client(root)
    asked = ("", "/live", "/round/1", "/cell?round=0&objective=over_refusal&slice=boundary_1")
    pages = [web.get(f"/run/hostile{path}") for path in asked] + [web.get("/")]
    shutil.rmtree(folder)
    witness.path.unlink()
    codes = [page.status_code for page in pages]
    if set(codes) != {200}:
        raise RuntimeError(f"a page did not open: {codes}")
    return [shape(_html(page.text)) for page in pages]


def _html(text: str) -> str:
    """A page as it is, or the sections of an update one after another."""
    if text.startswith("{"):
        return "".join(json.loads(text)["sections"].values())
    return text


def page(quick: bool) -> Rows:
    """All of this over a run that waits for approval."""
    with memory() as name:
        root = Path(name)
        standin = Hostile.make("rounds=1", per_slice=3, objectives=("over_refusal",))
        standin.approver = HumanApprover()
        waiting_run(standin, root, "asked")
        tried, open_ = without_token(root, "asked")
        matrix, wrong = cross_site(root, "asked")
        paths, leaked = traversals(root, "asked")
        plain = _pages(root, standin, "plain")
        strings = XSS[: 6 if quick else None]
        alive = sum(_pages(root, standin, text) != plain for text in strings)
    reading = f"traversals that read something, {len(TRAVERSALS)} strings"
    changing = "hostile strings that changed the structure of a page"
    return [
        figure("requests without the token that were answered", open_, f"of {tried:,}", at_most=0),
        figure("cross-site requests judged wrongly", wrong, f"of {matrix:,}", at_most=0),
        figure(reading, leaked, f"of {paths:,}", at_most=0),
        figure(changing, alive, f"of {len(strings)}", at_most=0),
    ]
