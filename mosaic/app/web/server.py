"""The web server of `python -m mosaic view`: FastAPI routes over the pages, on the loopback interface only."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from mosaic.app import decisions
from mosaic.app.files import parse_plan
from mosaic.app.views import plots
from mosaic.app.views.report_data import report_data
from mosaic.app.web import pages
from mosaic.app.web.guard import Guard, csrf_of, form_of
from mosaic.core.errors import MosaicError, StopRequested, UsageError, WaitingError
from mosaic.core.store import Store
from mosaic.core.types.plans import ActionPlan

HERE = Path(__file__).parent
STATIC = {"style.css": "text/css", "app.js": "text/javascript"}
POLL = 1.0
RESUME_LOG = "logs/resume.log"
RESUME_LINES = 8
KINDS = ("approve", "edit", "reject")
# A drawing of our own: its inline styles are no page's styles.
SVG_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


def create_app(root: Path, token: str, port: int, control: bool = False) -> FastAPI:
    """The application over the runs below `root`. With `control` it may start `resume` as a child process."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
    app.add_middleware(Guard, token=token, hosts=hosts)
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["words"] = lambda name: str(name).replace("_", " ")
    templates.filters["percent"] = lambda share: "-" if share is None else f"{100 * share:.1f}"
    children: dict[str, subprocess.Popen[bytes]] = {}

    def render(template: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(
            templates.get_template(template).render(csrf=csrf_of(token), control=control, **values)
        )

    @app.exception_handler(MosaicError)
    def failed(request: Request, error: MosaicError) -> Response:
        status = 404 if isinstance(error, UsageError) and request.method == "GET" else 409
        return HTMLResponse(
            templates.get_template("error.html.j2").render(message=str(error)), status
        )

    @app.get("/")
    def index() -> Response:
        return render("runs.html.j2", runs=pages.listing(root), root=root.name)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            return PlainTextResponse("no such file", 404)
        return Response((HERE / "static" / name).read_bytes(), media_type=STATIC[name])

    @app.get("/run/{name}")
    def run(name: str) -> Response:
        folder = pages.run_folder(root, name)
        return render("run.html.j2", name=name, **_shown(children, name, folder))

    @app.get("/run/{name}/live")
    def live(name: str) -> Response:
        folder = pages.run_folder(root, name)
        return render("live.html.j2", name=name, **_shown(children, name, folder))

    def mark(name: str, folder: Path) -> str:
        """Changes with what is recorded, and when a `resume` that this page started ends."""
        return pages.mark(folder) + ("-runs" if _running(children, name) else "")

    @app.get("/run/{name}/events")
    async def events(name: str, request: Request) -> Response:
        folder = pages.run_folder(root, name)

        async def stream() -> AsyncIterator[str]:
            last = ""
            while not await request.is_disconnected():
                now = await asyncio.to_thread(mark, name, folder)
                if now != last:
                    last = now
                    yield f"event: changed\ndata: {now}\n\n"
                await asyncio.sleep(POLL)

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.get("/run/{name}/plot/{kind}.svg")
    def plot(name: str, kind: str, dark: int = 0) -> Response:
        folder = pages.run_folder(root, name)
        if kind not in plots.KINDS:
            return PlainTextResponse("no such picture", 404)
        text = plots.svg(kind, report_data(folder), dark=bool(dark))
        return Response(text, media_type="image/svg+xml", headers=SVG_HEADERS)

    @app.get("/run/{name}/cell")
    def cell(name: str, round: int, objective: str, slice: str) -> Response:
        folder = pages.run_folder(root, name)
        found = pages.examples(folder, round, objective, slice)
        return render("cell.html.j2", round=round, objective=objective, slice=slice, examples=found)

    @app.get("/run/{name}/object/{digest}")
    def artifact(name: str, digest: str) -> Response:
        folder = pages.run_folder(root, name)
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            return PlainTextResponse("no such artifact", 404)
        path = Store(folder).path(digest)
        if not path.is_file():
            return PlainTextResponse("no such artifact", 404)
        headers = {"content-disposition": f'attachment; filename="{digest[:12]}"'}
        return Response(path.read_bytes(), media_type="application/octet-stream", headers=headers)

    @app.post("/run/{name}/check")
    async def check(name: str, request: Request) -> Response:
        folder = pages.run_folder(root, name)
        form = form_of(await request.body())
        try:
            plan = await asyncio.to_thread(_edited, folder, form)
            found = await asyncio.to_thread(
                decisions.violations, folder, decisions.pending(folder), plan
            )
        except MosaicError as error:
            return JSONResponse(
                {"violations": [{"path": "plan", "rule": "unreadable", "hint": str(error)}]}
            )
        return JSONResponse({"violations": [v.json_data() for v in found]})

    @app.post("/run/{name}/decide")
    async def decide(name: str, request: Request) -> Response:
        folder = pages.run_folder(root, name)
        form = form_of(await request.body())
        kind = form.get("kind", "")
        if kind not in KINDS:
            raise UsageError(f"{form.get('kind', '')[:40]!r} is no decision")

        def record() -> None:
            asked, reason = form.get("request", ""), form.get("reason", "")
            if kind == "reject":
                decisions.reject(folder, asked, reason=reason)
                return
            edited = _edited(folder, form) if kind == "edit" else None
            decisions.approve(folder, asked, edited=edited, reason=reason)

        await asyncio.to_thread(record)
        return RedirectResponse(f"/run/{quote(name, safe='')}", 303)

    @app.post("/run/{name}/resume")
    def resume(name: str) -> Response:
        folder = pages.run_folder(root, name)
        if not control:
            raise UsageError(
                "this page may not start anything; start it with `python -m mosaic view --control`"
            )
        if not _running(children, name):
            (folder / RESUME_LOG).parent.mkdir(exist_ok=True)
            with (folder / RESUME_LOG).open("ab") as log:
                command = [sys.executable, "-m", "mosaic", "resume", str(folder)]
                children[name] = subprocess.Popen(
                    command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
        return RedirectResponse(f"/run/{quote(name, safe='')}", 303)

    return app


def _running(children: dict[str, subprocess.Popen[bytes]], name: str) -> bool:
    return name in children and children[name].poll() is None


def _shown(children: dict[str, subprocess.Popen[bytes]], name: str, folder: Path) -> dict[str, Any]:
    """The page of a run, and what it says of a `resume` that it started: that it runs, or with which words it failed."""
    code = children[name].poll() if name in children else None
    running = _running(children, name)
    page = {"running": running, "failed": None, **pages.run_page(folder)}
    if running:
        page["mark"] += "-runs"
    if code not in (None, 0, WaitingError.exit_code, StopRequested.exit_code):
        lines = (
            (folder / RESUME_LOG).read_text(errors="replace").strip().splitlines()[-RESUME_LINES:]
        )
        page["failed"] = {"code": code, "words": "\n".join(lines)}
    return page


def _edited(folder: Path, form: dict[str, str]) -> ActionPlan:
    """The plan that waits with the form's percentages: fields `ratios.D` and `bucket_weights.D.B`. UsageError where a
    field is no number or a group does not sum to 100."""
    (shown,) = decisions.pending(folder).plans
    data = shown.plan.json_data()
    for dataset, bucket in ((entry.dataset, entry.bucket) for entry in shown.stock):
        if f"ratios.{dataset}" in form:
            data["ratios"].setdefault(dataset, 0.0)
        if f"bucket_weights.{dataset}.{bucket}" in form:
            data["bucket_weights"].setdefault(dataset, {}).setdefault(bucket, 0.0)
    groups: list[tuple[str, dict[str, float]]] = [("ratios", data["ratios"])]
    groups += [(f"bucket_weights.{d}", weights) for d, weights in data["bucket_weights"].items()]
    for path, weights in groups:
        given = {name: _percent(form, f"{path}.{name}") for name in weights}
        if any(v is None for v in given.values()):
            continue
        values = {name: float(v) for name, v in given.items() if v is not None}
        total = sum(values.values())
        if abs(total - 100) > 0.051 * len(values):
            raise UsageError(f"{path}: the shares sum to {total:.1f} %, not to 100 %")
        unchanged = all(abs(values[n] - round(100 * weights[n], 1)) < 1e-9 for n in weights)
        if not unchanged:
            # What a person typed is rounded to tenths of a percent; the group is scaled to sum to exactly one.
            weights.update({n: v / total for n, v in values.items()})
    data["rationale"] = f"Edited by a person. {data['rationale']}"[:8000]
    return parse_plan(json.dumps(data), "the edited plan")


def _percent(form: dict[str, str], field: str) -> float | None:
    if field not in form:
        return None
    try:
        value = float(form[field])
    except ValueError:
        raise UsageError(f"{field}: {form[field][:40]!r} is no number") from None
    if not 0 <= value <= 100:
        raise UsageError(f"{field}: {value:g} is not between 0 and 100")
    return value


def serve(root: Path, port: int, control: bool, say: Any) -> None:
    """Serve until Ctrl-C. Prints the link that logs the browser in."""
    import socket

    import uvicorn

    from mosaic.app.web.guard import LOGIN, new_token

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
        token = new_token(root)
        print(f"http://127.0.0.1:{bound}{LOGIN}?token={token}", flush=True)
        say(
            f"runs below {root}; "
            + ("this page may start `resume`; " if control else "")
            + "Ctrl-C ends it"
        )
        config = uvicorn.Config(
            create_app(root, token, bound, control),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run(sockets=[listener])
