"""The vLLM generator with a real vLLM and the lab's model: `make test-vllm`.

Skipped where vLLM is not installed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from eval.generators.adapter_probe import ProbeError
from eval.generators.base import TransformersGeneratorConfig, VllmGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm import VllmGenerator
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import Sampling

try:
    version("vllm")
    MISSING = False
except PackageNotFoundError:
    MISSING = True
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        MISSING,
        reason="vLLM is not installed here; `make test-vllm` makes an environment that has it",
    ),
]
LAB = Path("mosaic/lab/data").resolve()
SETTINGS = {"memory": "share", "dtype": "float32", "max_new_tokens": 32}


@pytest.fixture(scope="module")
def prompts():
    lines = [
        line
        for suite in ("safety", "over_refusal", "instruction_following")
        for line in (LAB / "suites" / suite / "steering.jsonl").read_text().splitlines()[::8]
    ]
    return [Prompt.model_validate_json(line) for line in lines]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Adapters with an effect that shows; the third has none.

    As many as the server holds at once, and one more.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed, spread in enumerate((0.2, 0.2, 0.0, 0.2, 0.2)):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(LAB / "model", dtype=torch.float32),
            LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=spread)
        folders.append(tmp_path_factory.mktemp("adapter"))
        model.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    made = VllmGenerator(
        LAB / "model", VllmGeneratorConfig(**SETTINGS), 8, tmp_path_factory.mktemp("logs")
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain():
    settings = TransformersGeneratorConfig(dtype="float32", max_new_tokens=32)
    return TransformersGenerator(LAB / "model", settings)


def same(ours, theirs):
    """The share of equal answers."""
    pairs = [
        (a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.answers, other.answers, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def test_base_and_adapters_answer_as_with_transformers_from_one_server(
    generator, plain, adapters, prompts
):
    for adapter in (None, adapters[0], adapters[1], None):
        ours, theirs = generator.generate(prompts, adapter), plain.generate(prompts, adapter)
        assert same(ours, theirs) >= 0.95
        equal = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.answers == b.answers]
        assert all(a == b for a, b in equal)  # finish reasons and token counts too
    assert generator.server.starts == 1


def test_drawn_answers_follow_from_their_seed(generator, prompts):
    with suppress(PackageNotFoundError):
        version("vllm-cpu-lora-fix")
        pytest.skip("vLLM's CPU build of tests/env ends at a request with a seed")
    sampling = Sampling(n=4, temperature=1.0, seed=1)
    drawn = generator.generate(prompts, None, sampling)
    assert [r.id for r in drawn] == [p.id for p in prompts for _ in range(4)]
    assert same(drawn, generator.generate(prompts, None, sampling)) >= 0.95
    other = sampling.model_copy(update={"seed": 2})
    assert same(drawn, generator.generate(prompts, None, other)) < 0.95


def test_likelihoods_are_the_models(generator, plain, adapters):
    texts = ["how do i store the bread ?", "the bridge is old and green ."]
    for adapter in (None, adapters[0]):
        served = generator.log_likelihood(texts, adapter)
        own = plain.log_likelihood(texts, adapter)
        assert [s.mean for s in served] == pytest.approx([o.mean for o in own], abs=1e-3)
        assert [s.tokens for s in served] == [o.tokens for o in own]


@pytest.mark.parametrize(("served", "mismatch"), [(1, "other"), (2, "base")])
def test_another_adapter_under_the_name_is_found(generator, adapters, served, mismatch):
    generator.serve(None)
    name = f"wrong-{served}"
    generator.server.load(name, adapters[served])
    answers, base = generator._continue_prompts([name, generator.server.base])
    with pytest.raises(ProbeError) as caught:
        generator._adapter_probe.check_adapter(adapters[0], name, answers, base)
    assert caught.value.mismatch == mismatch


def test_a_server_killed_in_the_middle_is_replaced_and_the_answers_are_the_same(
    generator, adapters, prompts
):
    before = generator.generate(prompts, adapters[0])
    starts, killed = generator.server.starts, threading.Event()

    def kill(done, total):
        if done == total // 4 and not killed.is_set():
            killed.set()
            guard = generator.server._child.pid
            child = int(Path(f"/proc/{guard}/task/{guard}/children").read_text().split()[0])
            os.killpg(child, signal.SIGKILL)

    generator.progress = kill
    try:
        after = generator.generate(prompts, adapters[0])
    finally:
        generator.progress = None
    assert killed.is_set()
    assert generator.server.starts == starts + 1
    assert same(before, after) >= 0.95


def test_the_adapter_probe_finds_base_requests_answered_by_an_adapter(
    adapters, tmp_path, monkeypatch
):
    """The CPU build's fault, with its way round (tests/env) switched off."""
    try:
        version("vllm-cpu-lora-fix")
    except PackageNotFoundError:
        pytest.skip("this vLLM is not the CPU build of tests/env")
    monkeypatch.setenv("VLLM_CPU_LORA_FIX", "off")
    generator = VllmGenerator(LAB / "model", VllmGeneratorConfig(**SETTINGS), 8, tmp_path)
    try:
        # Base rows take the last slot's adapter, so the fault shows as soon as all slots are
        # filled.
        with pytest.raises(ProbeError) as caught:
            list(map(generator.serve, adapters))
        assert caught.value.mismatch == "adapter"
    finally:
        generator.close()


def left_behind(mark):
    """Processes of this machine that inherited the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def run_lab(folder, settings, code=0, **environment):
    """A run of the laboratory by the command line, which ends with this exit code."""
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "mosaic", "run", "lab", "--run-dir", str(folder), "--json", *sets],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def test_the_laboratory_runs_with_vllm_and_leaves_nothing_behind(tmp_path):
    settings = {
        **{
            "generator.kind": "vllm",
            "generator.memory": "share",
            "generator.dtype": "float32",
            "rounds": 1,
        },
        **{
            "generator.max_new_tokens": 16,
            "calibration.repeats": 1,
            "budget.tokens_per_round": 2000,
        },
    }
    done = run_lab(tmp_path / "run", settings, MARK=str(tmp_path))
    report = json.loads(done.stdout)
    assert [r["round"] for r in report["rounds"]] == [0, 1]
    assert report["audit"]["chosen"] is not None
    assert done.stderr.count("vLLM: starting the server") == 1
    assert done.stderr.count("nats from PEFT") == 2
    assert not (tmp_path / "run" / "logs" / "vllm" / "adapters").exists()
    assert left_behind(str(tmp_path)) == []


def test_a_model_that_finishes_no_plan_on_an_attached_server_is_refused_before_anything_is_paid(
    tmp_path,
):
    """Planner and generator share a server that somebody else runs.

    The laboratory's own model writes JSON under the server's grammar, and never comes to its end.
    """
    # A plan's question is longer than the lab's chats; rotary positions need no weights to reach
    # further.
    base = tmp_path / "model"
    shutil.copytree(LAB / "model", base)
    shape = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 24_576}))
    config = VllmGeneratorConfig(**{**SETTINGS, "max_new_tokens": 16})
    host = VllmGenerator(base, config, 16, tmp_path / "host")
    try:
        host.generate([Prompt(id="p", turns=["hello"], slice="s", weight=1)], None)
        server = host.server
        settings = {
            **{
                "generator.kind": "vllm",
                "generator.base_url": server.url,
                "generator.api_key_env": "LAB_SERVER_KEY",
            },
            **{"generator.dtype": "float32", "generator.max_new_tokens": 16, "base_model": base},
            **{"rounds": 1, "calibration.repeats": 1, "budget.tokens_per_round": 2000},
            **{
                "planner.kind": "llm",
                "planner.tool_calls": "false",
                "planner.chat.base_url": server.url,
            },
            **{"planner.chat.model": server.base, "planner.chat.api_key_env": "LAB_SERVER_KEY"},
            **{"planner.chat.max_tokens": 1200, "planner.chat.max_attempts": 3},
        }
        done = run_lab(tmp_path / "run", settings, code=2, LAB_SERVER_KEY=server.key)
        assert "starting the server" not in done.stderr
        assert server.healthy()
    finally:
        host.close()
    # The server took the question with its schema: what fails is the answer.
    assert "truncated" in done.stderr
    assert "raise chat.max_tokens" in done.stderr
    assert server.key not in done.stderr
    assert not (tmp_path / "run" / "journal.sqlite").exists()
