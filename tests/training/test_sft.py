"""Training the real way on a tiny model: the weighted loss, canonical adapters, the same bytes twice."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.errors import BoundaryError, StopRequested, TrainingError, UsageError
from tools.executors.subprocess import InlineExecutor, SubprocessExecutor, SubprocessExecutorConfig
from training.methods.base import SftConfig, TrainJob
from training.methods.sft import (
    by_length,
    check_recipe,
    last_checkpoint,
    load_tokenizer,
    tokenise,
    train,
)
from training.models.adapter import check_adapter, model_digest

CHATS = [
    [
        {"role": "user", "content": f"how do i store the bread {i} ?"},
        {"role": "assistant", "content": "keep it dry ." * (1 + i % 4)},
    ]
    for i in range(12)
]


@pytest.fixture
def job(tiny_model, tmp_path):
    ids, _ = tokenise(load_tokenizer(tiny_model), CHATS)

    def make(out="adapter", weights=None, n_tokens=None, seed=1, **config):
        path = tmp_path / f"{out}.parquet"
        table = {
            "id": [f"r{i}" for i in range(len(CHATS))],
            "messages": CHATS,
            "n_tokens": n_tokens or [len(row) for row in ids],
            "weight": weights or [1.0] * len(CHATS),
        }
        pq.write_table(pa.table(table), path)
        settings = SftConfig(
            **{"learning_rate": 1e-3, "batch_size": 4, "lora_r": 4, "max_length": 128, **config}
        )
        return TrainJob(
            base_model=str(tiny_model),
            base_digest=model_digest(tiny_model),
            training_set=str(path),
            config=settings,
            seed=seed,
            out=str(tmp_path / out),
            work=str(tmp_path / f"{out}.work"),
        )

    return make


def test_labels_are_the_assistants_tokens_only(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    _, labels = tokenise(tokenizer, CHATS[:1])
    supervised = tokenizer.decode([t for t in labels[0] if t != -100])
    assert supervised == "keep it dry .<|end|>"


def test_training_gives_a_canonical_adapter_and_counts_tokens(job, tiny_model):
    made = job()
    result = train(made)
    files = sorted(p.name for p in Path(result.adapter).iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((Path(result.adapter) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"sha256:{made.base_digest}"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert result.steps == 3
    assert 0 < result.supervised < result.tokens
    assert result.real_token_share > 0.9


def test_same_job_same_bytes_also_in_another_process(job, tmp_path):
    first = InlineExecutor().run(job("one"))
    second = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs").run(job("two"))
    weights = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")
    ]
    assert weights[0] == weights[1]
    assert first.loss == second.loss


def loss_of(tiny_model, weights, rows, work):
    """The step loss that our trainer computes for one batch, and the token losses behind it."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from training.methods.sft import _trainer

    tokenizer = load_tokenizer(tiny_model)
    ids, labels = tokenise(tokenizer, rows)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    data = Dataset.from_dict({"input_ids": ids, "labels": labels, "weight": weights})
    made = TrainJob(
        base_model=str(tiny_model),
        base_digest="0",
        training_set="",
        config=SftConfig(lora_r=4),
        seed=1,
        out="unused",
        work=work,
    )

    class Silent(__import__("transformers").TrainerCallback):
        pass

    trainer = _trainer(made, model, tokenizer, data, 1, Silent())
    batch = trainer.data_collator([dict(r) for r in data])
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    with torch.no_grad():
        ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        logits = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            .logits[:, :-1]
            .float()
        )
        target = batch["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), target, reduction="none", ignore_index=-100
        )
    return float(ours), each.sum(dim=1).tolist(), (target != -100).sum(dim=1).tolist()


def test_weighted_loss_is_the_hand_value(tiny_model, tmp_path):
    rows = [CHATS[0], CHATS[3]]
    ours, sums, counts = loss_of(tiny_model, [1.0, 1 / 3], rows, str(tmp_path))
    assert ours == pytest.approx((sums[0] + sums[1] / 3) / (counts[0] + counts[1] / 3), rel=1e-5)
    plain, sums, counts = loss_of(tiny_model, [1.0, 1.0], rows, str(tmp_path))
    assert plain == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert abs(plain - ours) > 1e-4


def test_a_loss_that_is_no_number_fails_the_training_and_leaves_no_adapter(job, tmp_path):
    with pytest.raises(BoundaryError, match=r"lower training\.learning_rate"):
        train(job("burnt", learning_rate=1e30, epochs=2))
    assert not (tmp_path / "burnt").exists()


def test_packed_loss_is_the_unpacked_loss(tiny_model, tmp_path):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback

    from training.methods.sft import _trainer

    rows = CHATS[:4]
    unpacked, _, _ = loss_of(tiny_model, [1.0] * len(rows), rows, str(tmp_path))
    tokenizer = load_tokenizer(tiny_model)
    ids, labels = tokenise(tokenizer, rows)
    config = SftConfig(lora_r=4, packing=True, max_length=128, batch_size=1)
    made = TrainJob(
        base_model=str(tiny_model),
        base_digest="0",
        training_set="",
        config=config,
        seed=1,
        out=str(tmp_path / "x"),
        work=str(tmp_path),
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = _trainer(made, model, tokenizer, data, None, TrainerCallback())
    batches = list(trainer.get_train_dataloader())
    assert len(batches) < len(rows)
    count = sum(int((b["labels"] != -100).sum()) for b in batches)
    with torch.no_grad():
        packed = sum(
            float(
                trainer.compute_loss(trainer.model, dict(b), num_items_in_batch=torch.tensor(count))
            )
            for b in batches
        )
    assert packed == pytest.approx(unpacked, rel=1e-4)


def test_a_count_the_trainer_does_not_see_is_an_error(job):
    with pytest.raises(UsageError, match="the pool counted 99 tokens"):
        train(job(n_tokens=[99] * len(CHATS)))


def test_a_row_longer_than_the_limit_is_an_error(job):
    with pytest.raises(UsageError, match=r"training\.max_length is 8"):
        train(job(max_length=8))


def test_odd_rows_leave_every_batch_full_but_the_last():
    batches = by_length([5, 9, 5, 7, 6], 2, [1, 2])
    assert [len(b) for b in batches] == [2, 2, 2, 2, 2]
    assert sorted(i for b in batches for i in b) == sorted([*range(5)] * 2)


def test_an_interrupted_training_continues_bitwise_from_its_last_complete_checkpoint(job, tmp_path):
    whole = train(job("whole", epochs=3, save_every=2))
    made = job("cut", epochs=3, save_every=2)
    steps = []
    with pytest.raises(StopRequested):
        train(
            made, lambda event: steps.append(event["step"]), lambda: bool(steps) and steps[-1] >= 5
        )
    assert not Path(made.out).exists()
    newest = last_checkpoint(made)
    (Path(newest) / "trainer_state.json").write_text("{}")
    assert last_checkpoint(made).endswith("checkpoint-4")
    seen = []
    again = train(made, lambda event: seen.append(event["step"]))
    assert min(seen) == 5
    weights = [(Path(r.adapter) / "adapter_model.safetensors").read_bytes() for r in (whole, again)]
    assert weights[0] == weights[1]
    assert last_checkpoint(job("cut", epochs=3, save_every=2, seed=9)) is None


def test_a_run_cut_by_max_steps_counts_what_it_trained(job):
    result = train(job("cut", max_steps=2))
    assert result.steps == 2
    assert result.tokens < train(job("whole")).tokens


def test_a_template_that_does_not_teach_to_stop_is_refused(job, tiny_model, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    template = (bare / "chat_template.jinja").read_text()
    moved = template.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
    moved = (
        moved
        if moved != template
        else template.replace("{{ '<|end|>' }}{% endgeneration %}", "{% endgeneration %}")
    )
    assert moved != template, template
    (bare / "chat_template.jinja").write_text(moved)
    with pytest.raises(UsageError, match="learn to stop"):
        train(job().model_copy(update={"base_model": str(bare)}))


def test_packing_refuses_weights(job):
    with pytest.raises(UsageError, match="cannot carry weights"):
        train(job(weights=[0.5] * len(CHATS), packing=True, dtype="bfloat16"))


def test_a_template_without_generation_markers_is_refused(job, tiny_model, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    template = (bare / "chat_template.jinja").read_text()
    (bare / "chat_template.jinja").write_text(
        template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    with pytest.raises(UsageError, match="generation"):
        train(job().model_copy(update={"base_model": str(bare)}))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", None, "tokenizer files are missing or damaged"),
        ("tokenizer.json", "{", "tokenizer files are missing or damaged"),
        ("tokenizer.json", "{}", "tokenizer files are missing or damaged"),
        (
            "tokenizer.json",
            json.dumps(
                {
                    "version": "1.0",
                    "added_tokens": [],
                    "model": {"type": "BPE", "vocab": {"b": 0}, "merges": [["a", "b"]]},
                }
            ),
            "tokenizer files are missing or damaged",
        ),
        (
            "config.json",
            '{"model_type": "llama", "num_attention_heads": 0}',
            "its config.json is of no known model",
        ),
        ("config.json", "[]", "config.json is not a JSON object"),
        ("config.json", '{"model_type": "nosuch"}', "its config.json is of no known model"),
    ],
)
def test_a_damaged_model_folder_is_refused(tiny_model, tmp_path, name, text, message):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / name).unlink()
    if text is not None:
        (base / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        check_recipe(base, SftConfig())


def test_an_unknown_tracker_is_refused_before_anything_runs(tiny_model):
    with pytest.raises(UsageError, match=r"training\.report_to: 'nope': nope is not supported"):
        check_recipe(tiny_model, SftConfig(report_to="nope"))
    for known in ("tensorboard", "all", "none"):
        check_recipe(tiny_model, SftConfig(report_to=known))


def test_batches_by_length_hold_every_row_once_and_waste_little():
    import numpy as np

    lengths = np.random.default_rng(0).lognormal(4, 0.8, 4000).astype(int) + 8
    batches = by_length(lengths.tolist(), 8, [3])
    assert sorted(i for b in batches for i in b) == list(range(4000))
    real = sum(lengths[i] for b in batches for i in b) / sum(
        len(b) * max(lengths[i] for i in b) for b in batches
    )
    assert real >= 0.95
    assert batches != by_length(lengths.tolist(), 8, [4])


def failure_of(run):
    with pytest.raises(TrainingError) as caught:
        run()
    return caught.value.failure, str(caught.value)


def in_place_of_training(code):
    """A `Popen` that starts this code instead of the training job; the code sees the same arguments."""
    real = subprocess.Popen

    def start(command, **options):
        return real([sys.executable, "-c", code, *command[-2:]], **options)

    return start


@pytest.mark.parametrize(
    ("code", "limits", "failure", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {}, "killed", "signal 9"),
        ("import time; time.sleep(60)", {"max_seconds": 0.3}, "hang", "max_seconds"),
        ("import time; time.sleep(60)", {"heartbeat_seconds": 0.3}, "hang", "heartbeat_seconds"),
        ("raise MemoryError('out of memory')", {}, "out_of_memory", "out of memory"),
        ("raise ValueError('no such thing')", {}, "error", "no such thing"),
        ("pass", {}, "no_adapter", "no result"),
    ],
)
def test_a_child_that_fails_is_reported_as_what_it_was(
    job, tmp_path, monkeypatch, code, limits, failure, message
):
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(code))
    executor = SubprocessExecutor(SubprocessExecutorConfig(**limits), tmp_path / "logs")
    kind, text = failure_of(lambda: executor.run(job("x")))
    assert kind == failure
    assert message in text


def test_a_childs_own_errors_keep_their_kind(job, tmp_path):
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    with pytest.raises(UsageError, match="the pool counted"):
        executor.run(job("x", n_tokens=[99] * len(CHATS)))
    assert failure_of(lambda: executor.run(job("y", learning_rate=1e30, epochs=2)))[0] == "nan_loss"


def test_a_full_disk_under_a_child_is_an_oserror_as_it_is_here(job, tmp_path, monkeypatch):
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    code = """
import sys, training.methods.sft
def full(*rest): raise OSError(28, "No space left on device")
training.methods.sft._train = full
from training.worker import main
sys.exit(main(*sys.argv[1:]))
"""
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(code))
    with pytest.raises(OSError, match="No space left") as caught:
        executor.run(job("x"))
    assert caught.value.errno == 28


def test_nothing_of_the_childs_group_survives_it(job, tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(pid)!r}, 'w').write(str(p.pid))"
    )
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(code))
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    assert failure_of(lambda: executor.run(job("x")))[0] == "no_adapter"
    state = Path(f"/proc/{pid.read_text()}/stat")
    ended = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < ended:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_an_adapter_that_does_not_fit_is_found(job, tiny_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    result = train(job())
    check_adapter(tmp_path / "adapter", tiny_model)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(
        {k: v[:, :3] if "lora_A" in k else v for k, v in weights.items()},
        f"{result.adapter}/adapter_model.safetensors",
    )
    with pytest.raises(BoundaryError, match="has shape"):
        check_adapter(tmp_path / "adapter", tiny_model)
