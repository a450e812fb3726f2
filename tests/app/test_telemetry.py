"""Spans of a run: what they say, where they go, and what they never carry unless it is asked for."""

import gzip
import json
import os
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pydantic import ValidationError

from mosaic.app.config_file import load_config
from mosaic.app.telemetry import trackio_scores
from mosaic.app.telemetry.config import TelemetryConfig
from mosaic.app.telemetry.deliver import check_telemetry, deliver
from mosaic.app.telemetry.spans import spans_of
from mosaic.app.views.report_data import report_data
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.records import AskPlanner

# Trackio reads it once, when it is first imported.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()
OTEL = "by opentelemetry-sdk, which the extra `otel` brings"


@pytest.fixture(scope="module")
def spans(finished):
    return spans_of(finished)


def named(spans, name):
    return [span for span in spans if span.name == name]


def test_spans_nest_as_a_run_does(spans):
    by_path = {span.path: span for span in spans}

    def above(span):
        return by_path[span.parent].name

    (run,) = [span for span in spans if span.parent is None]
    assert run.name == "run run"
    (agent,) = named(spans, "invoke_agent llm")
    assert above(agent) == "round 1"
    chats = named(spans, "chat mosaic")
    assert len(chats) >= 3
    assert {above(chat) for chat in chats} == {"invoke_agent llm"}
    assert {above(tool) for tool in named(spans, "execute_tool check_plan")} == {"invoke_agent llm"}
    assert {above(train) for train in named(spans, "train sft")} == {"round 0", "round 1"}
    assert {above(judge) for judge in named(spans, "judge safety")} == {"evaluate"}
    (wait,) = named(spans, "wait for approval")
    assert wait.attributes["mosaic.decision"] == "approve"


def test_no_span_ends_before_it_begins_or_leaves_its_round(spans):
    by_path = {span.path: span for span in spans}
    for span in spans:
        assert span.start <= span.end, span.name
        if span.name in ("evaluate", "curate", "train sft", "invoke_agent llm"):
            round_ = by_path[span.parent]
            assert round_.start - 1e-6 <= span.start, span.name
            assert span.end <= round_.end + 1e-6, span.name


def test_tokens_and_seconds_are_those_that_the_journal_holds(finished, spans):
    journal = Journal.open(finished)
    answers = [step.result for step in journal.steps(AskPlanner)]
    journal.close()
    chats = named(spans, "chat mosaic")
    assert [c.attributes["mosaic.charged_tokens"] for c in chats] == [a.charged for a in answers]
    for chat, answer in zip(chats, answers, strict=True):
        assert chat.end - chat.start == pytest.approx(answer.seconds, abs=1e-3)
    used = report_data(finished).model_calls["planner"]
    (agent,) = named(spans, "invoke_agent llm")
    assert agent.attributes["mosaic.charged_tokens"] == used.tokens


def test_no_word_that_was_sent_or_said_is_in_a_span_unless_it_is_asked_for(finished, spans):
    told = spans_of(finished, content=True)
    asked = next(span for span in told if "gen_ai.input.messages" in span.attributes)
    messages = json.loads(asked.attributes["gen_ai.input.messages"])
    assert messages[0]["role"] == "system"
    words = messages[0]["parts"][0]["content"][:60]
    assert words in str(told)
    assert words not in str(spans)
    keys = {key for span in spans for key in span.attributes}
    assert not [key for key in keys if "messages" in key or "arguments" in key or "result" in key]
    rationale = report_data(finished).rounds[1].plan.rationale
    assert rationale not in str(spans)


def test_spans_of_a_run_are_the_same_each_time(finished, spans):
    assert spans_of(finished) == spans


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("collector:4318", "not an address"),
        ("ftp://collector/v1/traces", "not an address"),
        ("http://user:pass@collector/v1/traces", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://collector/v1/traces?key=1", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_an_address_is_checked_and_holds_no_password(address, message):
    with pytest.raises(ValidationError, match=message):
        TelemetryConfig(otlp=address)


def test_a_config_without_telemetry_keeps_its_digest():
    assert "telemetry" not in load_config("lab").json_data()
    config = load_config("lab", ["telemetry.capture_content=true"])
    assert config.telemetry == TelemetryConfig(capture_content=True)


def test_what_cannot_be_handed_on_is_said_and_never_raised(tmp_path):
    said = []
    deliver(tmp_path, TelemetryConfig(trackio="x"), said.append)  # there is no run here
    assert [line.partition(" not ")[0] for line in said] == [
        "telemetry: spans",
        "telemetry: trackio",
    ]


# -- with the real libraries -----------------------------------------------------------------------


class Receiver(BaseHTTPRequestHandler):
    """A receiver of OTLP over HTTP: it decodes requests by OpenTelemetry's own definitions."""

    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
            ExportTraceServiceResponse,
        )

        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *words):
        pass


@pytest.fixture
def receiver():
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def received(server):
    found = []
    for _, request in server.requests:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                found += scope.spans
    return found


def test_a_receiver_gets_every_span_with_its_parent(finished, spans, receiver):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=OTEL)
    from mosaic.app.telemetry.otel import send_spans

    send_spans(spans, f"http://127.0.0.1:{receiver.server_port}/v1/traces")
    assert receiver.requests[0][0] == "/v1/traces"
    got = received(receiver)
    assert sorted(span.name for span in got) == sorted(span.name for span in spans)
    assert len({span.trace_id for span in got}) == 1
    ids = {span.span_id: span for span in got}
    chat = next(span for span in got if span.name.startswith("chat"))
    assert chat.kind == chat.SPAN_KIND_CLIENT
    assert ids[ids[chat.parent_span_id].parent_span_id].name == "round 1"
    attributes = {pair.key: pair.value for pair in chat.attributes}
    assert attributes["gen_ai.operation.name"].string_value == "chat"
    assert attributes["gen_ai.usage.input_tokens"].int_value > 0
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano > 0 for span in got)


def test_the_file_is_a_request_as_otlp_writes_it_in_json(finished, spans, tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=OTEL)
    from mosaic.app.telemetry.otel import write_spans

    write_spans(spans, tmp_path / "spans.jsonl")
    write_spans(spans_of(finished), tmp_path / "again.jsonl")
    text = (tmp_path / "spans.jsonl").read_text()
    assert text == (tmp_path / "again.jsonl").read_text()
    (line,) = text.splitlines()
    (scope,) = json.loads(line)["resourceSpans"][0]["scopeSpans"]
    assert len(scope["spans"]) == len(spans)
    ids = {span["spanId"] for span in scope["spans"]}
    assert all(len(id_) == 16 and int(id_, 16) for id_ in ids)
    assert all(span.get("parentSpanId", min(ids)) in ids for span in scope["spans"])


def test_a_receiver_that_is_down_does_not_fail_the_run(finished, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=OTEL)
    from mosaic.app.telemetry import otel

    monkeypatch.setattr(otel, "TIMEOUT", 0.5)
    said = []
    deliver(
        finished, TelemetryConfig(spans=False, otlp="http://127.0.0.1:9/v1/traces"), said.append
    )
    assert said == [
        "telemetry: spans not handed on: http://127.0.0.1:9/v1/traces did not take the spans within 0 s"
    ]


def test_round_scores_stand_once_in_trackio_however_often_they_are_written(finished):
    trackio = pytest.importorskip("trackio", reason="by trackio, which the extra `trackio` brings")
    for _ in range(2):
        said = []
        deliver(finished, TelemetryConfig(spans=False, trackio="mosaic-test"), said.append)
        assert said == []
    (run,) = list(trackio.Api().runs("mosaic-test"))
    assert run.name.startswith("run-")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(60)", "trackio did not end within 1 s"),
        ("import sys; sys.exit('no room on the disk')", "trackio: no room on the disk"),
    ],
)
def test_a_tracker_that_hangs_or_fails_holds_nobody(finished, tmp_path, monkeypatch, code, said):
    """The worker is a program that misbehaves, in place of trackio's."""
    (tmp_path / "misbehaving.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(trackio_scores, "WORKER", "misbehaving")
    monkeypatch.setattr(trackio_scores, "SECONDS", 1.0)
    monkeypatch.setattr("mosaic.app.telemetry.deliver.needs", lambda module, extra: None)
    told, began = [], time.monotonic()
    deliver(finished, TelemetryConfig(spans=False, trackio="x"), told.append)
    assert told == [f"telemetry: trackio not handed on: {said}"]
    assert time.monotonic() - began < 50


def test_a_library_that_is_missing_is_named_by_validate(monkeypatch):
    monkeypatch.setattr("mosaic.app.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'mosaic-curation\[otel\]'"):
        check_telemetry(TelemetryConfig())
    with pytest.raises(UsageError, match=r"pip install 'mosaic-curation\[trackio\]'"):
        check_telemetry(TelemetryConfig(spans=False, trackio="x"))
    check_telemetry(None)
