"""What `generator.base_url` may do to the controller: take the key elsewhere, echo it, or be
something else than vLLM.
"""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.chat.http import Endpoint, is_loopback
from eval.generators.base import VllmGeneratorConfig
from eval.generators.draws import AnswerId
from eval.generators.vllm import VllmGenerator
from eval.generators.vllm_server import AttachedServer
from eval.generators.vllm_session import Session, _pause
from mosaic.core.errors import BoundaryError, UsageError
from mosaic.core.types.evaluation import Prompt

KEY = 'sk-secret-"VLLM"-123456'
MODELS = {"data": [{"id": "m"}]}
PROMPT = [Prompt(id="p", turns=["q"], slice="s", weight=1)]


@pytest.fixture
def serve(monkeypatch):
    """Start an HTTP server: `answer(path, key)` gives status, body, headers.

    Its port and the requests it saw.
    """
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(answer):
        seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                seen.append(self.path)
                status, body, headers = answer(self.path, self.headers["Authorization"])
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *arguments):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1].server_port, seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def always(body, status=200, **headers):
    return lambda path, key: (status, body, headers)


def config(port, host="127.0.0.1"):
    return VllmGeneratorConfig(base_url=f"http://{host}:{port}/v1")


def attached(port, host="127.0.0.1"):
    return AttachedServer(config(port, host))


@pytest.fixture
def ask(tiny_model, tmp_path, monkeypatch):
    """One generated answer of a server that needs no probe."""

    def one(port, host="127.0.0.1"):
        generator = VllmGenerator(tiny_model, config(port, host), 16, tmp_path)
        monkeypatch.setattr(generator, "serve", lambda adapter: "m")

        async def send():
            async with Session(generator, None) as session:
                return await session.ask(AnswerId("p", 0, 0), [{"role": "user", "content": "q"}])

        return asyncio.run(send())

    return one


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_key_or_a_prompt_elsewhere(serve, ask, status):
    other, trapped = serve(always(MODELS))
    port, _ = serve(always("", status, Location=f"http://localhost:{other}/steal"))
    for call in (attached(port).ready, lambda: attached(port).load("a", "b"), lambda: ask(port)):
        with pytest.raises(
            BoundaryError, match=rf"answered {status}.*redirect.*generator\.base_url"
        ):
            call()
    assert trapped == []


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("[::1]", True), ("LOCALHOST", True),
     ("127.evil.example", False), ("gpu.example", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback_is_known_by_its_host(host, own):
    assert is_loopback(f"http://{host}:80/v1") is own


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_loopback_goes_through_no_proxy(serve, ask, monkeypatch, host):
    proxy, seen = serve(always(MODELS))
    good = {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 1},
    }
    port, _ = serve(lambda path, key: (200, MODELS if path == "/v1/models" else good, {}))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
    assert attached(port, host).models() == [{"id": "m", "parent": None}]
    assert ask(port, host).text == "yes"
    assert seen == []


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_server_that_echoes_the_key_is_not_quoted(serve, ask, monkeypatch, status):
    monkeypatch.setattr("eval.generators.vllm_session.RESTARTS", 0)
    port, _ = serve(
        lambda path, key: (status, {"error": {"message": "x" * 280 + f"bad {key}"}}, {})
    )
    for call in (attached(port).models, lambda: attached(port).load("a", "b"), lambda: ask(port)):
        with pytest.raises((BoundaryError, UsageError), match="holds the key") as caught:
            call()
        assert "sk-secret" not in str(caught.value)
        assert status != 401 or "VLLM_API_KEY" in str(caught.value)


def test_what_a_server_says_is_quoted_otherwise(serve):
    port, _ = serve(always({"error": "no such route"}, 403))
    with pytest.raises(
        BoundaryError, match=r"answered 403 to /models: .*no such route.*VLLM_API_KEY"
    ):
        attached(port).models()


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY + "\n")
    with pytest.raises(UsageError, match="VLLM_API_KEY") as caught:
        attached(9).models()
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "body", ["<html>hi</html>", {"models": []}, {"data": ["m"]}, {"data": [{"id": 1}]}, [], "1"]
)
def test_an_address_that_is_no_vllm_is_named(serve, body):
    port, _ = serve(
        always(body, **({"Content-Type": "text/html"} if isinstance(body, str) else {}))
    )
    with pytest.raises(
        BoundaryError, match=r"/models does not answer as vLLM does; check generator\.base_url"
    ):
        attached(port).ready()


@pytest.mark.parametrize(
    ("body", "kind"),
    [('{"choices":[]}', "text/plain"), ("<html>", "application/json"), ("[]", "application/json"),
     ('{"prompt_token_ids":[1],"choices":[{"finish_reason":"stop","token_ids":[1],"message":{"content":7}}]}',
      "application/json")],
)  # fmt: skip
def test_a_chat_reply_that_is_none_is_named(serve, ask, tiny_model, tmp_path, body, kind):
    port, _ = serve(always(body, **{"Content-Type": kind}))
    generator = VllmGenerator(tiny_model, config(port), 16, tmp_path)
    for call in (lambda: ask(port), lambda: generator._continue_prompts(["m"])):
        with pytest.raises(
            BoundaryError, match=r"does not answer as vLLM does; check generator\.base_url"
        ):
            call()


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_a_probe_without_numbers_is_no_probe(serve, tiny_model, tmp_path, values):
    choice = {"token_ids": [1], "logprobs": {"content": [{"logprob": v} for v in values]}}
    port, _ = serve(always({"prompt_token_ids": [1], "choices": [choice]}))
    with pytest.raises(BoundaryError, match="does not answer as vLLM does"):
        VllmGenerator(tiny_model, config(port), 16, tmp_path)._continue_prompts(["m"])


def test_a_busy_server_of_somebody_else_is_asked_again(serve, ask, monkeypatch):
    monkeypatch.setattr("eval.generators.vllm_session._pause", lambda attempt, retry_after: 0.0)
    good = {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 1},
    }
    statuses = [429, 503, 408, 200]
    port, seen = serve(lambda path, key: (statuses.pop(0), good, {}))
    assert ask(port).text == "yes"
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("attempt", "retry_after", "least", "most"),
    [(0, None, 0.375, 0.5), (3, None, 3, 4), (9, None, 6, 8), (0, 7, 7, 7), (0, 3600, 0.375, 0.5)],
)
def test_pauses_grow_and_heed_the_server_within_a_minute(attempt, retry_after, least, most):
    assert least <= _pause(attempt, retry_after) <= most


def test_an_endpoint_does_not_show_its_key():
    assert "secret" not in repr(Endpoint("http://127.0.0.1:1/v1", "KEY", key="secret"))


def test_a_reply_without_end_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr("eval.generators.vllm_api.MAX_REPLY", 1000)
    port, _ = serve(always({"data": [{"id": "m" * 2000}]}))
    with pytest.raises(BoundaryError, match="does not answer as vLLM does"):
        attached(port).models()
