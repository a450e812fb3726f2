"""A base of the hub: from a cache in the real layout, pinned to its commit, or refused in a sentence.

No network: the cache is made here, and the hub is a scripted server on this machine.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mosaic.app.bases import base_folder, is_hub_name, pinned
from mosaic.app.config_file import load_config
from mosaic.core.errors import UsageError
from training.models.adapter import model_digest

COMMIT = hashlib.sha1(b"a commit").hexdigest()
NAME = "some-org/tiny-1.0"


def cached(cache: Path, model: Path, commit: str = COMMIT, revision: str = "main") -> Path:
    """Put a model into a hub cache as `huggingface_hub` does: blobs, links in snapshots, refs."""
    repo = cache / f"models--{NAME.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        blob = repo / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    (repo / "refs" / revision).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tiny_model, tmp_path, monkeypatch):
    """An empty hub cache that huggingface_hub looks into, by this process and its children."""
    from huggingface_hub import _snapshot_download, constants

    from mosaic.app import bases

    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(_snapshot_download.constants, "HF_HUB_CACHE", str(folder))
    bases._snapshot.cache_clear()
    yield folder
    bases._snapshot.cache_clear()


@pytest.mark.parametrize("text", ["hub:org/data", "hub:org/data@abc", "org/data@abc"])
@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("pool", "pool build rows.jsonl --model BASE --out POOL"),
        ("objectives.safety.suite", "--suite OBJECTIVE --out SUITE\n"),
        ("audit_also.more", "--suite OBJECTIVE --out SUITE --independent"),
    ],
)
def test_a_data_set_of_the_hub_is_not_a_folder_and_the_command_that_makes_one_is_told(
    field, part, text
):
    with pytest.raises(UsageError) as caught:
        load_config("lab", [f"{field}={text}"])
    told = str(caught.value)
    assert told.startswith(f"{field}: {text} is a data set of the hub")
    revision = "abc" if "@" in text else "REVISION"
    assert f"pool import hub:org/data@{revision} --as SHAPE" in told
    assert part in told


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "org/data@abc").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = load_config("lab", ["objectives.safety.suite=org/data@abc"])
    assert config.objectives["safety"].suite == str(tmp_path / "org/data@abc")


def config_file(folder: Path, base: str) -> Path:
    """The laboratory's config with another base."""
    lab = load_config("lab").json_data()
    path = folder / "config.json"
    path.write_text(json.dumps({**lab, "base_model": base}))
    return path


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT])
def test_a_cached_model_is_found_by_branch_tag_and_commit(cache, tiny_model, revision):
    snapshot = cached(cache, tiny_model, revision="main" if revision == COMMIT else revision)
    found = base_folder(f"{NAME}@{revision}")
    assert found.resolve() == snapshot.resolve()
    assert model_digest(found) == model_digest(tiny_model)


def test_without_a_revision_it_is_a_path_and_the_error_says_how_the_hub_is_named(cache, tiny_model):
    cached(cache, tiny_model)
    assert base_folder(NAME) == Path(NAME)
    with pytest.raises(UsageError, match="or org/name@revision of the hub"):
        model_digest(base_folder(NAME))


def test_a_config_is_pinned_to_the_commit_and_stays_so(cache, tiny_model, tmp_path):
    cached(cache, tiny_model)
    config = load_config(str(config_file(tmp_path, f"{NAME}@main")))
    assert config.base_model == f"{NAME}@main"
    once = pinned(config)
    assert once.base_model == f"{NAME}@{COMMIT}"
    cached(cache, tiny_model, commit="f" * 40)  # the branch goes on
    assert pinned(once) == once
    assert base_folder(once.base_model).name == COMMIT


def test_a_folder_is_a_folder_even_if_its_name_is_of_the_hubs_form(tiny_model, tmp_path):
    base = tmp_path / "models" / "base"
    shutil.copytree(tiny_model, base)
    config = load_config(str(config_file(tmp_path, "models/base")))
    assert config.base_model == str(base)
    assert pinned(config) == config
    assert not is_hub_name("models/base", tmp_path)


@pytest.mark.parametrize(
    "text", ["base", "./a/b", "../a/b", "/a/b", "~/a", "a/b", "a/b/c", "a/b@", "a//b"]
)
def test_other_paths_are_never_looked_up_at_the_hub(tmp_path, text):
    assert not is_hub_name(text, tmp_path)


def test_offline_and_not_cached_is_refused_with_the_command_that_fetches_it(cache):
    with pytest.raises(UsageError) as caught:
        base_folder(f"{NAME}@v2")
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert f"hf download {NAME} --revision v2" in str(caught.value)


def test_a_snapshot_without_weights_is_refused_before_a_run(cache, tiny_model, tmp_path):
    from mosaic.app.wiring import open_inputs

    snapshot = cached(cache, tiny_model)
    (snapshot / "model.safetensors").unlink()
    config = load_config(str(config_file(tmp_path, f"{NAME}@main")))
    with pytest.raises(UsageError, match=r"no \*\.safetensors weights"):
        open_inputs(config)


HUB_SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
folder, name, commit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
class Hub(BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{name}/tree/{commit}"):
            files = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name}
                     for p in folder.iterdir()]
            return self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
        if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
            info = {"id": name, "sha": commit, "siblings": []}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        if path.startswith(f"/api/models/{name}/revision/"):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        prefix = f"/{name}/resolve/{commit}/"
        if path.startswith(prefix) and (folder / path[len(prefix):]).is_file():
            body = (folder / path[len(prefix):]).read_bytes()
            return self.answer(200, body, ETag='"' + path[len(prefix):] + '"', X_Repo_Commit=commit)
        self.answer(404, X_Error_Code="RepoNotFound")
    do_HEAD = do_GET
server = HTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
"""
ASK = """
import sys
from mosaic.app.bases import base_folder
from mosaic.core.errors import UsageError
from training.models.adapter import model_digest
for named in sys.argv[1:]:
    try:
        folder = base_folder(named)
        print(folder.name, model_digest(folder))
    except UsageError as error:
        print("refused:", error)
"""


def test_a_model_is_fetched_from_the_hub_once_and_what_is_not_there_is_said(tiny_model, tmp_path):
    command = [sys.executable, "-c", HUB_SERVER, str(tiny_model), NAME, COMMIT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            environment = {
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{port}",
                "HF_HUB_CACHE": str(tmp_path / "hub"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            }
            asked = [f"{NAME}@main", f"{NAME}@nosuch", "some-org/nosuch@main"]
            first = subprocess.run(
                [sys.executable, "-c", ASK, *asked],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            server.terminate()
    assert first.returncode == 0, first.stderr
    found, revision, model = first.stdout.splitlines()
    assert found == f"{COMMIT} {model_digest(tiny_model)}"
    assert "has no revision 'nosuch'" in revision
    assert "nor a model at the hub" in model
    again = subprocess.run(
        [sys.executable, "-c", ASK, f"{NAME}@{COMMIT}"],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.splitlines()[0] == found


# The name of a base outside of a run


@pytest.mark.parametrize(
    ("named", "own", "name", "revision"),
    [
        (f"{NAME}@{COMMIT}", None, NAME, COMMIT),
        ("/models/base", None, "/models/base", None),
        ("/models/base", "org/base@v1", "org/base", "v1"),
        ("/models/base", "org/base", "org/base", None),
        (f"{NAME}@{COMMIT}", "org/other@x", "org/other", "x"),
    ],
)
def test_an_export_calls_its_base_as_the_owner_does(tmp_path, named, own, name, revision):
    from mosaic.app.export_model import base_name

    config = load_config(str(config_file(tmp_path, named)))
    if own:
        config = config.model_copy(update={"base_model_name": own})
    assert base_name(config) == (name, revision)


def test_a_config_without_the_owners_name_is_written_as_before():
    assert "base_model_name" not in load_config("lab").json_data()


LOAD = """
import sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "hello"}]
print(model.get_base_model().config.name_or_path, len(tokenizer.apply_chat_template(chat)) > 0)
"""


def test_peft_loads_an_exported_adapter_with_its_base_from_the_hubs_cache(
    cache, tiny_model, tmp_path
):
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from mosaic.app.export_model import export_adapter
    from training.models.adapter import canonicalise
    from training.models.lora_layout import lora_config

    cached(cache, tiny_model)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapter, digest = tmp_path / "adapter", model_digest(tiny_model)
    get_peft_model(model, lora_config(4, ["q_proj"])).save_pretrained(adapter)
    canonicalise(adapter, digest)
    config = pinned(load_config(str(config_file(tmp_path, f"{NAME}@main"))))
    export_adapter(adapter, config, digest, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == (NAME, COMMIT)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "out")],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "True" in done.stdout
