"""A stand-in for the `vllm` command, for faults only: it speaks the few routes that the generator
uses and knows no model.

An answer is a function of model name, chat and (if it is drawn) how it is drawn, so that a test can
say what must come back. Behaviour by environment: STAND_IN_LOG (a file that gets a line per
answered chat), STAND_IN_DIES_AFTER (answers until the process is gone, in each of its lives),
STAND_IN_MODE (`never`: no port is opened; `broken`: it ends at once; `child`: it has a child
process).
"""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OPTIONS = dict(argument[2:].partition("=")[::2] for argument in sys.argv[3:])
ADAPTERS = {}
ANSWERED = 0
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        cards = [
            {"id": "base", "parent": None},
            *({"id": name, "parent": "base"} for name in ADAPTERS),
        ]
        self.reply({"data": cards} if self.path == "/v1/models" else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            return self.reply({"error": {"message": "unauthorised"}}, 401)
        if self.path == "/v1/load_lora_adapter":
            ADAPTERS[body["lora_name"]] = body["lora_path"]
        elif self.path == "/v1/unload_lora_adapter":
            ADAPTERS.pop(body["lora_name"])
        elif self.path == "/v1/chat/completions":
            return self.chat(body)
        self.reply({})

    def chat(self, body):
        global ANSWERED
        if body["model"] != "base" and body["model"] not in ADAPTERS:
            return self.reply({"error": {"message": "no such model"}}, 404)
        if "too long" in body["messages"][-1]["content"]:
            return self.reply({"error": {"message": "maximum context length"}}, 400)
        with LOCK:
            ANSWERED += 1
            if int(os.environ.get("STAND_IN_DIES_AFTER", 10**9)) < ANSWERED:
                os._exit(1)
            with Path(os.environ["STAND_IN_LOG"]).open("a") as log:
                log.write(
                    json.dumps([body["model"], [m["content"] for m in body["messages"]]]) + "\n"
                )
        text = f"{body['model'][:7]} {len(body['messages'])} {body['messages'][-1]['content']}"
        if body["temperature"] > 0:
            text += f" {body['temperature']} {body['top_p']} {body['seed']}"
        self.reply(
            {
                "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"completion_tokens": len(text.split())},
            }
        )

    def reply(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def main():
    mode = os.environ.get("STAND_IN_MODE")
    if mode == "never":
        time.sleep(600)
    if mode == "broken":
        sys.exit("ValueError: this model has no head")
    if mode == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["STAND_IN_LOG"]).write_text(f"{os.getpid()} {child.pid}")
    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer(("127.0.0.1", int(OPTIONS["port"])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
