"""Training the real way on a tiny model: the weighted loss, canonical adapters, the same bytes twice."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from mosaic.core.errors import StopRequested, TrainingError, UsageError
from mosaic.core.types.runs import BASE, SftRecipe, TrainJob, Workplace
from training.methods.base import never
from training.methods.checkpoints import last_checkpoint
from training.methods.hf import load_model
from training.methods.sft import check_recipe, make_trainer, train
from training.models.adapter import check_adapter
from training.models.chat_template import tokenise
from training.models.tokenizer import load_tokenizer


def run(order, progress=None, stopping=never):
    return train(order.job, order.place, progress, stopping)


def weights_of(result):
    return (Path(result.adapter) / "adapter_model.safetensors").read_bytes()


def test_labels_are_the_assistants_tokens_only(tiny_model, chats):
    tokenizer = load_tokenizer(tiny_model)
    _, labels = tokenise(tokenizer, chats[:1])
    supervised = tokenizer.decode([t for t in labels[0] if t != -100])
    assert supervised == "keep it dry .<|end|>"


def test_training_gives_a_canonical_adapter_and_counts_tokens(order):
    made = order()
    result = run(made)
    files = sorted(p.name for p in Path(result.adapter).iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((Path(result.adapter) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"sha256:{made.job.inputs[BASE]}"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert result.steps == 3
    assert 0 < result.supervised < result.tokens
    assert result.real_token_share > 0.9


def trainer_of(tiny_model, rows, work, weights=None, **recipe):
    """Our trainer of some rows, made as a job makes it."""
    from datasets import Dataset
    from transformers import TrainerCallback

    tokenizer = load_tokenizer(tiny_model)
    ids, labels = tokenise(tokenizer, rows)
    columns = {"input_ids": ids, "labels": labels}
    if weights:
        columns["weight"] = weights
    job = TrainJob(recipe=SftRecipe(lora_r=4, **recipe), inputs={BASE: "0"}, seed=1)
    place = Workplace(paths={BASE: str(tiny_model)}, out="unused", work=str(work))
    model = load_model(tiny_model, "float32")
    data = Dataset.from_dict(columns)
    steps = 1 if weights else None
    return make_trainer(job, place, model, tokenizer, data, steps, TrainerCallback()), data


def loss_of(tiny_model, weights, rows, work):
    """The step loss that our trainer computes for one batch, and the token losses behind it."""
    import torch

    trainer, data = trainer_of(tiny_model, rows, work, weights)
    batch = trainer.data_collator([dict(r) for r in data])
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    model = load_model(tiny_model, "float32")
    with torch.no_grad():
        ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        target = batch["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].float().transpose(1, 2),
            target,
            reduction="none",
            ignore_index=-100,
        )
    return float(ours), each.sum(dim=1).tolist(), (target != -100).sum(dim=1).tolist()


def test_weighted_loss_is_the_hand_value(tiny_model, tmp_path, chats):
    rows = [chats[0], chats[3]]
    ours, sums, counts = loss_of(tiny_model, [1.0, 1 / 3], rows, tmp_path)
    assert ours == pytest.approx((sums[0] + sums[1] / 3) / (counts[0] + counts[1] / 3), rel=1e-5)
    plain, sums, counts = loss_of(tiny_model, [1.0, 1.0], rows, tmp_path)
    assert plain == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert abs(plain - ours) > 1e-4


def test_packed_loss_is_the_unpacked_loss(tiny_model, tmp_path, chats):
    import torch

    rows = chats[:4]
    unpacked, _, _ = loss_of(tiny_model, [1.0] * len(rows), rows, tmp_path)
    trainer, _ = trainer_of(tiny_model, rows, tmp_path, packing=True, max_length=128, batch_size=1)
    batches = list(trainer.get_train_dataloader())
    assert len(batches) < len(rows)
    count = torch.tensor(sum(int((b["labels"] != -100).sum()) for b in batches))
    packed = 0.0
    with torch.no_grad():
        for batch in batches:
            packed += float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=count))
    assert packed == pytest.approx(unpacked, rel=1e-4)


def test_a_loss_that_is_not_finite_fails_the_training_and_leaves_no_adapter(order):
    made = order("burnt", learning_rate=1e30, epochs=2)
    with pytest.raises(TrainingError, match=r"lower methods\.sft\.learning_rate") as caught:
        run(made)
    assert caught.value.failure == "nan_loss"
    assert caught.value.repeats
    assert not Path(made.place.out).exists()


def test_a_count_the_trainer_does_not_see_is_an_error(order):
    with pytest.raises(UsageError, match="the pool counted 99 tokens"):
        run(order(n_tokens=[99] * 12))


def test_a_row_longer_than_the_limit_is_an_error(order):
    with pytest.raises(UsageError, match=r"methods\.sft\.max_length is 8"):
        run(order(max_length=8))


def test_an_interrupted_training_continues_bitwise_from_its_last_complete_checkpoint(order):
    whole = run(order("whole", epochs=3, save_every=2))
    made = order("cut", epochs=3, save_every=2)
    steps = []
    with pytest.raises(StopRequested):
        run(made, lambda event: steps.append(event["step"]), lambda: bool(steps) and steps[-1] >= 5)
    assert not Path(made.place.out).exists()
    work = Path(made.place.work)
    newest = last_checkpoint(made.job, work)
    (Path(newest) / "trainer_state.json").write_text("{}")
    assert last_checkpoint(made.job, work).endswith("checkpoint-4")
    seen = []
    again = run(made, lambda event: seen.append(event["step"]))
    assert min(seen) == 5
    assert weights_of(again) == weights_of(whole)
    other = order("cut", epochs=3, save_every=2, seed=9)
    assert last_checkpoint(other.job, work) is None


def test_a_run_cut_by_max_steps_counts_what_it_trained(order):
    result = run(order("cut", max_steps=2))
    assert result.steps == 2
    assert result.tokens < run(order("whole")).tokens


def test_packing_refuses_weights(order):
    with pytest.raises(UsageError, match="cannot carry weights"):
        run(order(weights=[0.5] * 12, packing=True, dtype="bfloat16"))


def without_an_end(template):
    return template.replace("<|end|>{% endgeneration %}", "{% endgeneration %}")


def broken_syntax(template):
    return template + "{% if %}"


def refusing(text):
    """A template that raises for chats that hold a text."""

    def change(template):
        check = f"{{% if {text!r} in messages[0]['content'] %}}"
        return check + "{{ raise_exception('no such chats here') }}{% endif %}" + template

    return change


def adding_a_number(template):
    """A template that breaks as Python breaks, on some rows only."""
    broken = "{% if '7' in messages[0]['content'] %}{{ messages[0]['content'] + 1 }}{% endif %}"
    return broken + template


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_an_end, "learn to stop"),
        (broken_syntax, r"cannot render a question and an answer.*mend a copy"),
        (refusing("bread"), r"cannot render a question and an answer \(no such chats here\)"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(
    order, changed_template, change, message
):
    with pytest.raises(UsageError, match=message):
        run(order(base=changed_template(change)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(refusing("bread 7"), "no such chats here"), (adding_a_number, "can only concatenate")],
)
def test_a_template_that_refuses_some_rows_is_an_error_that_names_the_row(
    order, changed_template, change, reason
):
    with pytest.raises(UsageError, match=rf"row 7 \(r7\).*{reason}.*mend the template"):
        run(order(base=changed_template(change)))


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
            "its config.json does not describe a known model",
        ),
        ("config.json", "[]", "config.json is no"),
        (
            "config.json",
            '{"model_type": "nosuch"}',
            "its config.json does not describe a known model",
        ),
    ],
)
def test_a_damaged_model_folder_is_refused(tiny_model, tmp_path, name, text, message):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / name).unlink()
    if text is not None:
        (base / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        check_recipe(base, SftRecipe())


def test_an_unknown_tracker_is_refused_before_anything_runs(tiny_model):
    with pytest.raises(UsageError, match=r"methods\.sft\.report_to: 'nope': nope is not supported"):
        check_recipe(tiny_model, SftRecipe(report_to="nope"))
    for known in ("all", "none"):
        check_recipe(tiny_model, SftRecipe(report_to=known))


@pytest.mark.skipif(find_spec("clearml") is not None, reason="clearml is installed here")
def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(tiny_model):
    with pytest.raises(UsageError, match=r"methods\.sft\.report_to: 'clearml': .*pip install"):
        check_recipe(tiny_model, SftRecipe(report_to="clearml"))


def test_an_adapter_that_does_not_fit_is_found(order, tiny_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = Path(run(order()).adapter)
    check_adapter(folder, tiny_model)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    cut = {name: w[:, :3] if "lora_A" in name else w for name, w in weights.items()}
    save_file(cut, path)
    with pytest.raises(TrainingError, match="has shape") as caught:
        check_adapter(folder, tiny_model)
    assert caught.value.repeats
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrainingError, match="is not readable") as caught:
        check_adapter(folder, tiny_model)
    assert not caught.value.repeats
