"""Training the real way on a tiny model: the weighted loss, canonical adapters, the same bytes twice."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.errors import BoundaryError, UsageError
from tools.executor import InlineExecutor, SubprocessExecutor, SubprocessExecutorConfig
from training.adapter import check_adapter, model_digest
from training.sft import by_length, load_tokenizer, tokenise, train
from training.trainer import SftConfig, TrainJob

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
        settings = SftConfig(**{"learning_rate": 1e-3, "batch_size": 4, "lora_r": 4, "max_length": 128, **config})
        return TrainJob(
            base_model=str(tiny_model),
            base_digest=model_digest(tiny_model),
            training_set=str(path),
            config=settings,
            seed=seed,
            out=str(tmp_path / out),
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
    files = sorted(p.name for p in (p for p in __import__("pathlib").Path(result.adapter).iterdir()))
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((__import__("pathlib").Path(result.adapter) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"sha256:{made.base_digest}"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert result.steps == 3
    assert 0 < result.supervised < result.tokens
    assert result.real_token_share > 0.9


def test_same_job_same_bytes_also_in_another_process(job, tmp_path):
    first = InlineExecutor().run(job("one"))
    second = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs").run(job("two"))
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert first.loss == second.loss


def loss_of(tiny_model, weights, rows):
    """The step loss that our trainer computes for one batch, and the token losses behind it."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from training.sft import _trainer

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
        out="/tmp/unused/x",
    )

    class Silent(__import__("transformers").TrainerCallback):
        pass

    trainer = _trainer(made, model, tokenizer, data, 1, Silent())
    batch = trainer.data_collator([dict(r) for r in data])
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    with torch.no_grad():
        ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        target = batch["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none", ignore_index=-100)
    return float(ours), each.sum(dim=1).tolist(), (target != -100).sum(dim=1).tolist()


def test_weighted_loss_is_the_hand_value(tiny_model):
    rows = [CHATS[0], CHATS[3]]
    ours, sums, counts = loss_of(tiny_model, [1.0, 1 / 3], rows)
    assert ours == pytest.approx((sums[0] + sums[1] / 3) / (counts[0] + counts[1] / 3), rel=1e-5)
    plain, sums, counts = loss_of(tiny_model, [1.0, 1.0], rows)
    assert plain == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert abs(plain - ours) > 1e-4


def test_a_loss_that_is_no_number_fails_the_training_and_leaves_no_adapter(job, tmp_path):
    with pytest.raises(BoundaryError, match="lower the learning rate"):
        train(job("burnt", learning_rate=1e30, epochs=2))
    assert not (tmp_path / "burnt").exists()


def test_packed_loss_is_the_unpacked_loss(tiny_model, tmp_path):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback

    from training.sft import _trainer

    rows = CHATS[:4]
    unpacked, _, _ = loss_of(tiny_model, [1.0] * len(rows), rows)
    tokenizer = load_tokenizer(tiny_model)
    ids, labels = tokenise(tokenizer, rows)
    config = SftConfig(lora_r=4, packing=True, max_length=128, batch_size=1)
    made = TrainJob(
        base_model=str(tiny_model), base_digest="0", training_set="", config=config, seed=1, out=str(tmp_path / "x")
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = _trainer(made, model, tokenizer, data, None, TrainerCallback())
    batches = list(trainer.get_train_dataloader())
    assert len(batches) < len(rows)
    count = sum(int((b["labels"] != -100).sum()) for b in batches)
    with torch.no_grad():
        packed = sum(
            float(trainer.compute_loss(trainer.model, dict(b), num_items_in_batch=torch.tensor(count))) for b in batches
        )
    assert packed == pytest.approx(unpacked, rel=1e-4)


def test_a_count_the_trainer_does_not_see_is_an_error(job):
    with pytest.raises(UsageError, match="the pool counted 99 tokens"):
        train(job(n_tokens=[99] * len(CHATS)))


def test_a_row_longer_than_the_limit_is_an_error(job):
    with pytest.raises(UsageError, match=r"training\.max_length is 8"):
        train(job(max_length=8))


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


def test_batches_by_length_hold_every_row_once_and_waste_little():
    import numpy as np

    lengths = np.random.default_rng(0).lognormal(4, 0.8, 4000).astype(int) + 8
    batches = by_length(lengths.tolist(), 8, seed=3)
    assert sorted(i for b in batches for i in b) == list(range(4000))
    real = sum(lengths[i] for b in batches for i in b) / sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert real >= 0.95
    assert batches != by_length(lengths.tolist(), 8, seed=4)


def test_a_child_that_dies_is_reported_as_what_it_was(job, tmp_path, monkeypatch):
    executor = SubprocessExecutor(SubprocessExecutorConfig(max_seconds=0.2), tmp_path / "logs")
    with pytest.raises(BoundaryError, match=r"longer than executor\.max_seconds"):
        executor.run(job("late"))
    monkeypatch.setattr(subprocess, "Popen", _killed(subprocess.Popen))
    with pytest.raises(BoundaryError, match="signal 9"):
        SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs").run(job("killed"))


def _killed(real):
    def start(command, **options):
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        return real([sys.executable, "-c", code], **options)

    return start


def test_an_adapter_that_does_not_fit_is_found(job, tiny_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    result = train(job())
    check_adapter(tmp_path / "adapter", tiny_model)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(
        {k: v[:, :3] if "lora_A" in k else v for k, v in weights.items()}, f"{result.adapter}/adapter_model.safetensors"
    )
    with pytest.raises(BoundaryError, match="has shape"):
        check_adapter(tmp_path / "adapter", tiny_model)
