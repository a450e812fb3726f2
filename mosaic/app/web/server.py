"""The web server of `python -m mosaic view`: routes over the pages, on the loopback interface only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from pydantic import JsonValue
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from mosaic.app import decisions, views
from mosaic.app.comments import add_comment
from mosaic.app.stage import read_stage, stage_text
from mosaic.app.stopping import stop_run
from mosaic.app.views import plots
from mosaic.app.views.compare import compare
from mosaic.app.views.html import add_result_filters
from mosaic.app.views.report_data import report_data
from mosaic.app.views.story import Entry
from mosaic.app.views.story_markdown import chapter_markdown, entry_markdown
from mosaic.app.views.telling import entry_of, turn_of
from mosaic.app.views.trace_html import Asked, add_filters, longest_of
from mosaic.app.web import pages
from mosaic.app.web.children import Children
from mosaic.app.web.form import (
    Form,
    edited_plan,
    edited_plans,
    prefix_of,
    ticked,
    typed_shares,
)
from mosaic.app.web.guard import LOGIN, Guard, csrf_of, form_of, token_of
from mosaic.app.web.sections import Section, changed, marks_of, sections_of
from mosaic.core.errors import MosaicError, UsageError
from mosaic.core.lock import other_holder
from mosaic.core.store import Store
from mosaic.core.tables import change_counter
from mosaic.core.types.base import JsonObject
from mosaic.core.types.plans import ApprovalRequest, Violation

HERE = Path(__file__).parent
VIEWS = Path(views.__file__).parent
STATIC = {
    "style.css": (HERE / "static", "text/css"),
    "app.js": (HERE / "static", "text/javascript"),
    "trace.css": (VIEWS, "text/css"),
    "report.css": (VIEWS, "text/css"),
    "trace.js": (VIEWS, "text/javascript"),
}
BADGES = {
    "waiting for approval": "wait",
    "decided": "wait",
    "finished": "done",
    "running": "done",
    "paused": "bad",
    "failed": "bad",
    "dead": "bad",
    "damaged": "bad",
}
POLL = 1.0  # seconds between two looks at a run that somebody watches
KINDS = ("approve", "edit", "reject", "respond")
HEXADECIMAL = set("0123456789abcdef")
OTHER = "This page showed another question than the one that waits now, so your answer was not recorded."
# A drawing of our own: it may have inline styles, which a page may not.
SVG_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


class RunLinks:
    """Addresses of one run's entries."""

    def __init__(self, name: str) -> None:
        self._run = f"/run/{quote(name, safe='')}"

    def entry(self, entry: Entry) -> str:
        return f"{self._run}/event/{entry.seq}#e{entry.id}"

    def markdown(self, entry: Entry) -> str:
        return f"{self._run}/event/{entry.seq}/markdown?turn={entry.id.partition('.')[2]}"

    def kept(self, entry: Entry) -> str:
        return ""

    def chapter(self, number: int) -> str:
        return f"{self._run}/round/{number}"


class Site:
    """The pages over the runs below `root`. With `control` they may start `resume`."""

    def __init__(self, root: Path, token: str, control: bool) -> None:
        self.root = root
        self.control = control
        self.children = Children()
        self._csrf = csrf_of(token)
        self._templates = Environment(
            loader=FileSystemLoader([HERE / "templates", VIEWS]),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        add_filters(self._templates)
        add_result_filters(self._templates)
        self._templates.filters["share"] = _percent
        self._templates.filters["badge"] = lambda state: BADGES.get(state, "")
        self._templates.filters["iso"] = _iso

    def folder(self, name: str) -> Path:
        return pages.run_folder(self.root, name)

    def text(self, template: str, /, **values: object) -> str:
        """A filled template."""
        found = self._templates.get_template(template)
        return found.render(csrf=self._csrf, control=self.control, **values)

    def page(self, template: str, /, status: int = 200, **values: object) -> HTMLResponse:
        return HTMLResponse(self.text(template, **values), status)

    def run(self, folder: Path) -> tuple[pages.RunPage, list[Section]]:
        """The page of a run, and its sections."""
        page = pages.run_page(folder)
        values = {
            "page": page,
            "child": self.children.of(folder),
            "links": RunLinks(folder.name),
        }
        return page, sections_of(self.text, values)

    def mark(self, folder: Path) -> str:
        """Changes with what is recorded, and when a controller takes the run or leaves it."""
        held = "-held" if other_holder(folder) else ""
        return change_counter(folder) + held + ("-runs" if self.children.running(folder) else "")

    def decide(self, folder: Path, form: Form) -> None:
        """Record a decision on the question that the form was made for.

        Raises UsageError if another question or none waits, or if the answer cannot be taken.
        """
        kind, request, reason = (form.get(name, "") for name in ("kind", "request", "reason"))
        by = " ".join(form.get("by", "").split())[:60] or None
        if kind not in KINDS:
            raise UsageError(f"{kind[:40]!r} is not a decision")
        asked = decisions.seen(folder, request)
        if kind == "reject":
            decisions.reject(folder, request, reason=reason, by=by)
            return
        if kind == "respond":
            decisions.respond(folder, request, comment=reason, by=by)
            return
        edits = edited_plans(asked, form) if kind == "edit" else {}
        only = ticked(asked, form)
        decisions.approve(folder, request, edits=edits, only=only, reason=reason, by=by)

    def refused(self, folder: Path, form: Form, error: MosaicError) -> Response:
        """The page after a decision that was not recorded: nothing that was typed is lost."""
        message = OTHER if isinstance(error, decisions.AnotherQuestion) else str(error)
        return self.page(
            "refused.html.j2",
            409,
            name=folder.name,
            message=message,
            waiting=_waiting(folder),
            reason=form.get("reason", ""),
            shares=typed_shares(form),
        )


def create_app(root: Path, token: str, port: int, control: bool = False) -> FastAPI:
    """The application over the runs below `root`. With `control` it may start `resume`."""
    site = Site(root, token, control)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token, hosts={f"127.0.0.1:{port}", f"localhost:{port}"})

    @app.exception_handler(MosaicError)
    def failed(request: Request, error: MosaicError) -> Response:
        missing = isinstance(error, UsageError) and request.method == "GET"
        return site.page("error.html.j2", 404 if missing else 409, message=str(error))

    _add_reading(app, site)
    _add_parts(app, site)
    _add_deciding(app, site)
    return app


def _add_reading(app: FastAPI, site: Site) -> None:
    """The list of runs, the page of one, and its live updates."""

    @app.get("/")
    def index() -> Response:
        found = pages.listing(site.root)
        names = pages.objectives_of(found)
        return site.page("runs.html.j2", runs=found, objectives=names, root=site.root.name)

    @app.get("/compare")
    def side_by_side(run: Annotated[list[str], Query()] = []) -> Response:  # noqa: B006
        found = compare([site.folder(name) for name in run])
        return site.page("compare_page.html.j2", found=found)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            return PlainTextResponse("no such file", 404)
        folder, kind = STATIC[name]
        return Response((folder / name).read_bytes(), media_type=kind)

    @app.get("/run/{name}")
    def run(name: str) -> Response:
        folder = site.folder(name)
        mark = site.mark(folder)
        page, sections = site.run(folder)
        return site.page("run.html.j2", page=page, sections=sections, mark=mark)

    @app.get("/run/{name}/live")
    def live(name: str, have: str = "") -> Response:
        folder = site.folder(name)
        mark = site.mark(folder)
        page, sections = site.run(folder)
        new = changed(sections, marks_of(have))
        marks = {section.name: section.mark for section in new}
        texts = {section.name: section.html for section in new}
        waits = page.request.request if page.request else ""
        decided = ""
        if page.decided:
            decided = f"{page.decided.kind} by {page.decided.by}"
        told = {"mark": mark, "marks": marks, "sections": texts, "waits": waits, "decided": decided}
        return JSONResponse(told)

    @app.get("/run/{name}/events")
    async def events(name: str, request: Request) -> Response:
        folder = site.folder(name)

        async def stream() -> AsyncIterator[str]:
            last, said = "", ""
            while not await request.is_disconnected():
                now = site.mark(folder)
                if now != last:
                    last = now
                    yield f"event: changed\ndata: {now}\n\n"
                stage = read_stage(folder)
                text = stage_text(stage) if stage else ""
                if text != said:
                    said = text
                    yield f"event: stage\ndata: {text}\n\n"
                await asyncio.sleep(POLL)

        return StreamingResponse(stream(), media_type="text/event-stream")


def _add_parts(app: FastAPI, site: Site) -> None:
    """What a page of a run loads when somebody opens it. With `part` it comes without a frame."""

    @app.get("/run/{name}/round/{number}")
    def round_(name: str, number: int, before: int | None = None, part: int = 0) -> Response:
        folder, links = site.folder(name), RunLinks(name)
        if part or before is not None:
            found = pages.round_reasons(folder, number, before)
            return site.page(
                "lines.html.j2", name=name, reasons=found, part=bool(part), links=links
            )
        chapter = pages.chapter(folder, number)
        longest = longest_of([chapter])
        return site.page("round.html.j2", name=name, chapter=chapter, links=links, longest=longest)

    @app.get("/run/{name}/round/{number}/markdown")
    def round_markdown(name: str, number: int) -> Response:
        return PlainTextResponse(chapter_markdown(pages.chapter(site.folder(name), number)))

    @app.get("/run/{name}/event/{number}")
    def event(name: str, number: int, part: int = 0) -> Response:
        entry = entry_of(site.folder(name), number)
        return site.page(
            "event.html.j2",
            name=name,
            entry=entry,
            part=bool(part),
            links=RunLinks(name),
            user=decisions.user_name(),
        )

    @app.get("/run/{name}/event/{number}/markdown")
    def event_markdown(name: str, number: int, turn: str = "") -> Response:
        id_ = f"{number}.{turn}" if turn else str(number)
        return PlainTextResponse(entry_markdown(turn_of(site.folder(name), id_)) + "\n")

    @app.get("/run/{name}/trace")
    def trace(
        name: str, q: str = "", kind: str = "", objective: str = "", failed: int = 0
    ) -> Response:
        asked = Asked(q=q.strip(), kind=kind, objective=objective, failed=bool(failed))
        found = pages.trace_page(site.folder(name), asked)
        return site.page("trace_page.html.j2", page=found, links=RunLinks(name))

    @app.get("/run/{name}/plot/{kind}.svg")
    def plot(name: str, kind: str, dark: int = 0) -> Response:
        folder = site.folder(name)
        if kind not in plots.KINDS:
            return PlainTextResponse("no such picture", 404)
        text = plots.svg(kind, report_data(folder), "dark" if dark else "light")
        return Response(text, media_type="image/svg+xml", headers=SVG_HEADERS)

    @app.get("/run/{name}/cell")
    def cell(name: str, round: int, objective: str, slice: str) -> Response:
        found = pages.examples(site.folder(name), round, objective, slice)
        return site.page(
            "cell.html.j2", examples=found, round=round, objective=objective, slice=slice
        )

    @app.get("/run/{name}/object/{digest}")
    def artifact(name: str, digest: str) -> Response:
        folder = site.folder(name)
        if len(digest) != 64 or not set(digest) <= HEXADECIMAL:
            return PlainTextResponse("no such artifact", 404)
        path = Store(folder).path(digest)
        if not path.is_file():
            return PlainTextResponse("no such artifact", 404)
        headers = {"content-disposition": f'attachment; filename="{digest[:12]}"'}
        return Response(path.read_bytes(), media_type="application/octet-stream", headers=headers)


def _add_deciding(app: FastAPI, site: Site) -> None:
    """Checking and recording a decision, and starting `resume`."""

    @app.post("/run/{name}/check")
    async def check(name: str, request: Request) -> Response:
        folder = site.folder(name)
        form = form_of(await request.body())
        return JSONResponse(await asyncio.to_thread(_checked, folder, form))

    @app.post("/run/{name}/decide")
    async def decide(name: str, request: Request) -> Response:
        folder = site.folder(name)
        form = form_of(await request.body())
        try:
            await asyncio.to_thread(site.decide, folder, form)
        except MosaicError as error:
            return await asyncio.to_thread(site.refused, folder, form, error)
        return _back(folder)

    @app.post("/run/{name}/event/{number}/comment")
    async def comment(name: str, number: int, request: Request) -> Response:
        folder = site.folder(name)
        form = form_of(await request.body())
        about = turn_of(folder, form.get("event", str(number)))
        add_comment(folder, about.id, form.get("text", ""), form.get("by", ""))
        return RedirectResponse(f"/run/{quote(folder.name, safe='')}/event/{about.seq}", 303)

    @app.post("/run/{name}/resume")
    def resume(name: str) -> Response:
        folder = site.folder(name)
        if not site.control:
            raise UsageError(
                "this page may not start anything; start it with `python -m mosaic view --control`"
            )
        site.children.start(folder)
        return _back(folder)

    @app.post("/run/{name}/stop")
    async def stop(name: str, request: Request) -> Response:
        folder = site.folder(name)
        if not site.control:
            raise UsageError(
                "this page may not stop anything; start it with `python -m mosaic view --control`"
            )
        form = form_of(await request.body())
        stop_run(folder, form.get("reason", ""))
        return _back(folder)


def _checked(folder: Path, form: Form) -> JsonObject:
    """The edited plan as the question would show it: violations, tokens asked, predictions.

    For one that cannot be read, why, as its only violation.
    """
    try:
        asked = decisions.seen(folder, form.get("request", ""))
        return _found(folder, asked, form)
    except decisions.AnotherQuestion:
        return _unreadable(f"{OTHER} Copy what you typed, then load the page again.")
    except MosaicError as error:
        return _unreadable(str(error))


def _found(folder: Path, asked: ApprovalRequest, form: Form) -> JsonObject:
    """What `_checked` says of plans that can be read; of several each name begins as its fields do."""
    plans = {number: edited_plan(asked, form, number) for number in ticked(asked, form)}
    violations: list[JsonValue] = []
    tokens: dict[str, JsonValue] = {}
    predicted: list[JsonValue] = []
    for number, plan in plans.items():
        siblings = [other for place, other in plans.items() if place < number]
        shown = decisions.edited_view(folder, asked, plan, siblings)
        prefix = prefix_of(asked, number)
        for violation in shown.violations:
            violations.append({**violation.json_data(), "path": prefix + violation.path})
        for demand in shown.stock:
            tokens[f"{prefix}{demand.dataset}.{demand.bucket}"] = demand.asked
        for prediction in shown.predicted:
            objective = prefix + prediction.objective
            predicted.append({**prediction.json_data(), "objective": objective})
    return {"violations": violations, "asked": tokens, "predicted": predicted}


def _unreadable(hint: str) -> JsonObject:
    return {"violations": [Violation(path="plan", rule="unreadable", hint=hint).json_data()]}


def _waiting(folder: Path) -> ApprovalRequest | None:
    """The question that waits now, if one does and can be read."""
    try:
        return decisions.pending(folder)
    except MosaicError:
        return None


def _back(folder: Path) -> Response:
    """To the page of the run, as a browser asks after a form."""
    return RedirectResponse(f"/run/{quote(folder.name, safe='')}", 303)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _iso(at: float) -> str:
    """A moment in the time of this machine."""
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")


def serve(root: Path, port: int, control: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. Prints the link that logs the browser in."""
    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"--port {port}: {error.strerror}; name another port, or 0 for any"
            ) from None
        listener.listen()
        bound = int(listener.getsockname()[1])
        token = token_of(root)
        print(f"http://127.0.0.1:{bound}{LOGIN}?token={token}", flush=True)
        may = "this page may start `resume`; " if control else ""
        say(f"runs below {root}; {may}Ctrl-C ends it, and no run that it started")
        config = uvicorn.Config(
            create_app(root, token, bound, control),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run(sockets=[listener])
        say("the page is closed; runs go on")
