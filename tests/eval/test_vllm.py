"""The vLLM generator without vLLM: order of turns, faults of a server, what the adapter probe
finds.

The real one: `make test-vllm`.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eval.generators.adapter_probe import (
    PROMPTS,
    TOKENS,
    AdapterProbe,
    Continuation,
    ProbeError,
    ProbeResult,
)
from eval.generators.base import VllmGeneratorConfig
from eval.generators.conversations import Turn, replay
from eval.generators.draws import AnswerId
from eval.generators.vllm import VllmGenerator
from eval.generators.vllm_adapters import ADAPTER_FILES, adapter_digest, check_adapter_recipe
from eval.generators.vllm_api import ServerGone, generation_settings
from eval.generators.vllm_server import AttachedServer, OwnServer
from eval.generators.vllm_session import Session
from mosaic.app.loop import stop_signals
from mosaic.core.errors import BoundaryError, PausedError, UsageError
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import Sampling, SftRecipe
from training.methods.vllm_limits import check_servable

STAND_IN = Path(__file__).with_name("vllm_stand_in.py")


def prompts(*turns):
    return [
        Prompt(id=f"p{i}", turns=[f"{i}.{t}" for t in range(n)], slice="s", weight=1)
        for i, n in enumerate(turns)
    ]


# Conversations


def test_a_slow_conversation_holds_nobody_up():
    ended = []

    async def ask(wanted, chat):
        await asyncio.sleep(0.2 if wanted.prompt == "p0" else 0.001)
        ended.append((wanted.prompt, sum(m["role"] == "user" for m in chat)))
        return Turn("yes", "stop", 1)

    asyncio.run(replay(prompts(2, 3, 3), ask, 8))
    assert ended.index(("p0", 1)) > ended.index(("p1", 3))
    assert [k for w, k in ended if w == "p1"] == [1, 2, 3]


def test_responses_come_in_the_order_of_the_prompts_with_their_reasons_and_tokens():
    async def ask(wanted, chat):
        where = wanted.prompt
        return Turn(f"{where} {len(chat)}", "length" if where == "p1" else "stop", 2)

    first, second = asyncio.run(replay(prompts(1, 3), ask, 1))
    assert (first.id, first.answers, first.n_tokens) == ("p0", ["p0 1"], 2)
    assert second.answers == ["p1 1", "p1 3", "p1 5"]
    assert second.finish_reasons == ["length"] * 3


def test_one_error_ends_all_conversations():
    asked = []

    async def ask(wanted, chat):
        asked.append(wanted)
        await asyncio.sleep(0.01)
        raise BoundaryError("gone")

    with pytest.raises(BoundaryError, match="gone"):
        asyncio.run(replay(prompts(*[1] * 50), ask, 5))
    assert len(asked) <= 10


# Recipes


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (4, 8), (16, 16), (48, 64), (512, 512)])
def test_a_rank_is_served_by_the_next_that_vllm_has(rank, served):
    assert check_servable(SftRecipe(lora_r=rank)) == served


def test_a_rank_beyond_vllm_is_refused_before_training():
    with pytest.raises(UsageError, match=r"methods.sft.lora_r: 1024 .* at most 512"):
        check_servable(SftRecipe(lora_r=1024))


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_dora", True), ("bias", "all"), ("modules_to_save", ["lm_head"]), ("r", 64)],
)
def test_an_adapter_that_vllm_cannot_express_is_refused_by_field(tmp_path, field, value):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 8, "bias": "none", field: value})
    )
    with pytest.raises(UsageError, match=field):
        check_adapter_recipe(tmp_path, 16)


# The adapter probe, against PEFT's own forward pass


@pytest.fixture(scope="module")
def adapters(tiny_model, tmp_path_factory):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (0, 1):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
            LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        folders.append(tmp_path_factory.mktemp("adapter"))
        model.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def answers(tiny_model, adapters):
    """What a right server would say to the probe's prompts: by model, `None` being the base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def of(adapter):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
        served = []
        for chat in PROMPTS:
            ids = list(
                tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)[
                    "input_ids"
                ]
            )
            tokens, values = [], []
            for _ in range(TOKENS):
                with torch.inference_mode():
                    row = torch.log_softmax(
                        model(input_ids=torch.tensor([ids + tokens])).logits[0, -1].float(), -1
                    )
                tokens.append(int(row.argmax()))
                values.append(float(row.max()))
            served.append(Continuation(ids, tokens, values))
        return served

    return {adapter: of(adapter) for adapter in (None, *adapters)}


@pytest.fixture(scope="module")
def probe(tiny_model):
    return AdapterProbe(tiny_model, "float32")


def test_the_probe_passes_a_server_that_does_what_peft_does(probe, adapters, answers):
    assert probe.check_base(answers[None]) < 1e-3
    for adapter in adapters:
        result = probe.check_adapter(adapter, "a", answers[adapter], answers[None])
        assert result.error < 1e-3
        assert result.distinct


@pytest.mark.parametrize(("answered_by", "mismatch"), [(None, "base"), (1, "other")])
def test_a_missing_or_swapped_adapter_is_found(probe, adapters, answers, answered_by, mismatch):
    served = answers[None if answered_by is None else adapters[answered_by]]
    with pytest.raises(ProbeError) as caught:
        probe.check_adapter(adapters[0], "a", served, answers[None])
    assert caught.value.mismatch == mismatch
    assert "nothing was scored" in str(caught.value)


def test_an_adapter_that_answers_for_the_base_is_found(probe, adapters, answers):
    with pytest.raises(ProbeError, match="not answered by") as caught:
        probe.check_adapter(adapters[0], "a", answers[adapters[0]], answers[adapters[0]])
    assert caught.value.mismatch == "adapter"


def test_another_chat_template_is_found(probe, answers):
    moved = [Continuation([7, *s.prompt], s.tokens, s.logprobs) for s in answers[None]]
    with pytest.raises(ProbeError) as caught:
        probe.check_base(moved)
    assert caught.value.mismatch == "rendering"


def test_the_reference_model_is_left_without_adapter(probe, adapters, answers):
    probe.check_adapter(adapters[1], "a", answers[adapters[1]], answers[None])
    assert probe.check_base(answers[None]) < 1e-3


# A server that fails


class Quiet(AdapterProbe):
    """For servers that know no model."""

    def check_base(self, served):
        return 0.0

    def check_adapter(self, adapter, name, served, base_served):
        return ProbeResult(0.0, 1.0, True)


@pytest.fixture
def stand_in(monkeypatch, tmp_path, tiny_model):
    """(a generator whose server is the stand-in, the stand-in's log); keywords are the stand-in's
    environment.
    """
    command = tmp_path / "vllm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setattr("eval.generators.vllm_server.find_vllm", lambda: str(command))
    log = tmp_path / "answered.jsonl"
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    made = []

    def make(settings=None, **environment):
        for key, value in environment.items():
            monkeypatch.setenv(f"STAND_IN_{key.upper()}", str(value))
        config = VllmGeneratorConfig(**{"memory": "share", "start_seconds": 20, **(settings or {})})
        generator = VllmGenerator(tiny_model, config, 16, tmp_path / "logs")
        generator._adapter_probe = Quiet(tiny_model, "float32")
        monkeypatch.setattr(generator, "_continue_prompts", lambda names: [[] for _ in names])
        made.append(generator)
        return generator, log

    yield make
    for generator in made:
        generator.close()


def gone(pid):
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_after_a_crash_every_conversation_goes_on_where_it_stood(stand_in, adapters):
    generator, log = stand_in(dies_after=40)
    responses = generator.generate(prompts(*[1, 2, 3, 4] * 5), adapters[0])
    assert generator.server.starts == 2
    for i, response in enumerate(responses):
        assert response.answers == [f"adapter {2 * t + 1} {i}.{t}" for t in range((i % 4) + 1)]
    asked = [json.dumps(json.loads(line)[1]) for line in log.read_text().splitlines()]
    assert len(set(asked)) == 50
    assert (
        len(asked) - 50 <= 20
    )  # at most what was under way when it died: one turn per conversation


def test_n_answers_are_n_requests_with_seeds_of_their_own_which_a_crash_keeps(stand_in):
    sampling = Sampling(n=3, temperature=0.7, top_p=0.9, seed=5)
    generator, log = stand_in(dies_after=20)
    drawn = generator.generate(prompts(1, 2, 3, 3), None, sampling)
    assert generator.server.starts == 2
    assert [r.id for r in drawn] == [f"p{i}" for i in range(4) for _ in range(3)]
    for i, response in enumerate(drawn):
        for turn, answer in enumerate(response.answers):
            seed = AnswerId(response.id, i % 3, turn).seed(sampling)
            assert answer == f"base {2 * turn + 1} {i // 3}.{turn} 0.7 0.9 {seed}"
    # Each chat holds the earlier answers of its own sample.
    chats = {tuple(json.loads(line)[1]) for line in log.read_text().splitlines()}
    for response in drawn:
        assert any(list(chat[1::2]) == response.answers[:-1] for chat in chats)


def test_a_greedy_answer_carries_no_seed():
    greedy = generation_settings(8, [2], Sampling(top_p=0.5), seed=7)
    assert (greedy["temperature"], greedy["top_p"], greedy["seed"]) == (0.0, 1.0, None)


def test_a_server_that_keeps_dying_ends_the_evaluation(stand_in):
    generator, _ = stand_in(dies_after=3)
    with pytest.raises(BoundaryError, match=r"died 3 times .*server\.log"):
        generator.generate(prompts(*[1] * 40), None)


def test_a_server_that_is_never_ready_is_given_up(stand_in):
    generator, _ = stand_in({"start_seconds": 1}, mode="never")
    with pytest.raises(BoundaryError, match=r"not ready after generator\.start_seconds = 1"):
        generator.generate(prompts(1), None)


def test_a_start_tells_what_the_log_says_last_and_a_failure_what_went_wrong(tiny_model, tmp_path):
    server = OwnServer(tiny_model, VllmGeneratorConfig(), 16, tmp_path, print)
    assert server._last_line() == "no output"
    server.log.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "(APIServer pid=27) WARNING 11-29 22:18:24 [utils.py:299] This can cause errors like `OSError`.",
        "(EngineCore pid=30) INFO 11-29 22:19:31 [kv_cache_utils.py:2146] GPU KV cache size: 9,649 tokens",
    ]
    server.log.write_text("\n".join(lines) + "\n")
    assert server._last_line() == "GPU KV cache size: 9,649 tokens"
    assert server._last_error() == "GPU KV cache size: 9,649 tokens"
    bar = "\rCapturing CUDA graphs:   0%|  | 0/102\rCapturing CUDA graphs:  33%|=  | 34/102"
    with server.log.open("a", newline="") as log:
        log.write(f"(EngineCore pid=30) {bar}\n")
    assert server._last_line() == "Capturing CUDA graphs:  33%|=  | 34/102"
    with server.log.open("a") as log:
        log.write(
            "(EngineCore pid=30) TypeError: load() got an argument\nguard: the server ended\n"
        )
    assert server._last_error() == "TypeError: load() got an argument"


def test_a_second_interrupt_ends_a_restart_that_would_take_long(stand_in, monkeypatch):
    generator, _ = stand_in({"start_seconds": 60}, dies_after=3)

    def say(text):
        if "starting it again" in text:
            monkeypatch.setenv("STAND_IN_MODE", "never")
            for seconds in (2, 3):
                threading.Timer(
                    seconds, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]
                ).start()

    generator.say = say
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stop_signals(print) as stopping:
        generator.generate(prompts(*[1] * 8), None)
    assert stopping()
    assert time.monotonic() - started < 30


def test_a_server_that_was_given_up_is_not_started_again(stand_in, monkeypatch):
    generator, _ = stand_in(mode="never")
    server = generator.server
    start = OwnServer._start
    monkeypatch.setattr(OwnServer, "_start", lambda self: (self.give_up(), start(self)))
    started = time.monotonic()
    for _ in range(2):  # given up while it starts, and before it starts
        with pytest.raises(BoundaryError, match="given up"):
            server.ready()
    assert server.starts == 1
    assert time.monotonic() - started < 15


def test_a_server_that_ends_at_once_is_quoted(stand_in):
    generator, _ = stand_in(mode="broken")
    with pytest.raises(BoundaryError, match="this model has no head"):
        generator.generate(prompts(1), None)


def test_a_prompt_that_does_not_fit_is_named(stand_in):
    generator, _ = stand_in()
    long = Prompt(id="huge", turns=["too long"], slice="s", weight=1)
    with pytest.raises(UsageError, match=r"prompt huge: .*maximum context length"):
        generator.generate([long], None)


def test_share_keeps_one_server_and_stop_starts_one_per_evaluation(stand_in, adapters):
    for memory, starts in (("share", 1), ("stop", 3)):
        generator, _ = stand_in({"memory": memory})
        for adapter in (None, adapters[0], adapters[1]):
            generator.generate(prompts(1, 2), adapter)
            generator.generate(prompts(2), adapter)
            generator.release()
        assert generator.server.starts == starts


def test_the_same_adapter_in_another_folder_is_the_same_and_a_changed_one_is_not(
    adapters, tmp_path
):
    for name in ADAPTER_FILES:
        (tmp_path / name).write_bytes((adapters[0] / name).read_bytes())
    assert adapter_digest(tmp_path) == adapter_digest(adapters[0]) != adapter_digest(adapters[1])
    weights = tmp_path / ADAPTER_FILES[1]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert adapter_digest(tmp_path) != adapter_digest(adapters[0])


def test_closing_ends_the_whole_group_and_removes_the_copies(stand_in, adapters, tmp_path):
    generator, log = stand_in(mode="child")
    generator.serve(adapters[0])
    pids = log.read_text().split()
    assert list((tmp_path / "logs" / "adapters").iterdir())
    generator.close()
    assert all(gone(pid) for pid in pids)
    assert not (tmp_path / "logs" / "adapters").exists()
    generator.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_controller_that_is_killed_leaves_no_server(tmp_path, tiny_model, number):
    command = tmp_path / "vllm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    command.chmod(0o755)
    code = (
        "import sys, time\nfrom pathlib import Path\nimport eval.generators.vllm_server as v\n"
        "from eval.generators.base import VllmGeneratorConfig\n"
        f"v.find_vllm = lambda: {str(command)!r}\n"
        f"v.OwnServer(Path({str(tiny_model)!r}), VllmGeneratorConfig(), 16, Path({str(tmp_path)!r}), print).ready()\n"
        "print('up', flush=True); time.sleep(60)\n"
    )
    log = tmp_path / "pids"
    environment = {
        **os.environ,
        "STAND_IN_LOG": str(log),
        "STAND_IN_MODE": "child",
        "PYTHONPATH": os.getcwd(),
    }
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    while "up" not in child.stdout.readline():
        pass
    child.send_signal(number)
    child.wait()
    assert all(gone(pid) for pid in log.read_text().split())


def test_the_log_is_bounded_and_keeps_the_end(tmp_path, monkeypatch):
    import eval.generators.vllm_server as module

    monkeypatch.setattr(module, "LOG_BYTES", 10_000)
    child = subprocess.Popen(
        [sys.executable, "-c", "for i in range(20000): print('line', i)"], stdout=subprocess.PIPE
    )
    module._copy_log(child.stdout, tmp_path / "server.log")
    child.wait()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 20_000 + 2 * 65536
    newest = max(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert newest.read_text().splitlines()[-1] == "line 19999"


def test_the_key_is_on_no_command_line(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.generators.vllm_server.find_vllm", lambda: "vllm")
    server = OwnServer(tiny_model, VllmGeneratorConfig(), 16, tmp_path, print)
    other = OwnServer(tiny_model, VllmGeneratorConfig(), 16, tmp_path, print)
    assert server.key != other.key
    command = " ".join(server.command(8000))
    assert server.key not in command
    assert "--host=127.0.0.1" in command
    assert "--generation-config=vllm" in command
    assert "trust" not in command


class Counting(Quiet):
    """Fails from the second check on, where told so."""

    checks, fails = 0, False

    def check_base(self, served):
        self.checks += 1
        if self.fails and self.checks > 1:
            raise ProbeError("another base", "adapter")
        return 0.0


def test_the_base_is_checked_after_every_start(stand_in):
    generator, _ = stand_in(dies_after=15)
    generator._adapter_probe = Counting(generator.base_model, "float32")
    generator.generate(prompts(*[1] * 20), None)
    assert (generator.server.starts, generator._adapter_probe.checks) == (2, 2)
    generator.generate(prompts(1), None)
    assert generator._adapter_probe.checks == 2


def test_a_base_whose_check_did_not_pass_is_checked_again(stand_in):
    generator, _ = stand_in()
    lost = [ServerGone("gone"), ProbeError("another base", "adapter")]

    class Failing(Quiet):
        def check_base(self, served):
            raise lost.pop(0) if len(lost) > 1 else lost[0]

    generator._adapter_probe = Failing(generator.base_model, "float32")
    for _ in range(2):
        with pytest.raises(ProbeError):
            generator.generate(prompts(1), None)


def test_the_base_of_an_attached_server_is_checked_before_every_call_and_after_a_loss(
    stand_in, monkeypatch
):
    own, _ = stand_in()
    own.serve(None)
    monkeypatch.setenv("VLLM_API_KEY", own.server.key)
    generator, _ = stand_in({"base_url": own.server.url})
    probe = generator._adapter_probe = Counting(generator.base_model, "float32")
    generator.generate(prompts(1), None)
    generator.generate(prompts(1), None)
    assert probe.checks == 2
    asyncio.run(_lost(Session(generator, None)))
    assert probe.checks == 3
    probe.fails = True
    with pytest.raises(ProbeError):
        generator.generate(prompts(1), None)


async def _lost(session):
    async with session:
        await session._recover(0, "gone")


def test_a_base_is_read_once_and_its_numbers_are_held_to_that_every_time(
    tiny_model, answers, monkeypatch
):
    probe = AdapterProbe(tiny_model, "float32")
    probe.check_base(answers[None])
    monkeypatch.setattr(probe, "_read", None)
    assert probe.check_base(answers[None]) < 1e-3
    with pytest.raises(ProbeError):
        probe.check_base(
            [Continuation(s.prompt, s.tokens, [v - 1 for v in s.logprobs]) for s in answers[None]]
        )


def test_an_attached_server_that_is_down_pauses_the_run(monkeypatch):
    monkeypatch.setattr("eval.generators.vllm_server.PATIENCE", 0.0)
    server = AttachedServer(VllmGeneratorConfig(base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(PausedError, match="mosaic resume"):
        server.ready()
