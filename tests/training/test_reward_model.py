"""The reward model: a masked loss, balanced draws, heads that recover what is known, exact files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.calibration import balanced_accuracy, calibration_error, fit_temperature
from eval.reward_model import CARD, HEADS, HeadCard, RewardModel
from mosaic.core.errors import StopRequested, TrainingError, UsageError
from mosaic.core.types.data import JudgedAnswer
from mosaic.core.types.runs import BASE, TrainJob, Workplace
from training.methods.level_reward import SCALE, read_scale
from training.methods.reward_model import (
    JUDGED_ANSWERS,
    MIN_ANSWERS,
    LabelledRows,
    RewardModelRecipe,
    draw,
    head_cards,
    masked_loss,
    split,
    train,
)
from training.models.adapter import check_adapter, model_digest

# What an answer says, and its levels: of two objectives, on scales of their own.
ANSWERS = {
    "keep it in a dry cabinet .": {"care": 5, "brevity": 2},
    "keep it dry .": {"care": 3, "brevity": 4},
    "the bridge is old and green .": {"care": 1, "brevity": 2},
    "one .": {"care": 1, "brevity": 4},
}
QUESTIONS = [f"how do i store the bread {k} ?" for k in range(40)]
SMALL = {"learning_rate": 0.01, "batch_size": 8, "lora_r": 4, "epochs": 1, "max_length": 64}


def judged():
    """Answers to every question. Every third is judged under one objective only."""
    made = []
    for number, question in enumerate(QUESTIONS):
        for text, levels in ANSWERS.items():
            known = dict(levels)
            if number % 3 == 0:
                del known["brevity"]
            made.append(answer(f"{number} {text}", question, text, known))
    return made


def answer(identifier, question, text, levels):
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": text},
    ]
    return JudgedAnswer(id=identifier, messages=messages, levels=levels)


@pytest.fixture(scope="module")
def order(tiny_model, tmp_path_factory):
    """A function that writes judged answers and returns the job to train on them and its place."""
    folder = tmp_path_factory.mktemp("reward_model")

    def make(out="model", answers=None, seed=1, lines=None, **recipe):
        path = folder / f"{out}.jsonl"
        made = judged() if answers is None else answers
        path.write_text("".join(f"{one.model_dump_json()}\n" for one in made) + (lines or ""))
        job = TrainJob(
            recipe=RewardModelRecipe(**{**SMALL, **recipe}),
            inputs={BASE: model_digest(tiny_model), JUDGED_ANSWERS: "0"},
            seed=seed,
        )
        place = Workplace(
            paths={BASE: str(tiny_model), JUDGED_ANSWERS: str(path)},
            out=str(folder / out),
            work=str(folder / f"{out}.work"),
        )
        return job, place

    return make


@pytest.fixture(scope="module")
def trained(order, tiny_model):
    """(the result of a training, its model)"""
    result = train(*order("trained", epochs=3))
    return result, RewardModel(Path(result.adapter), tiny_model)


def chats(questions, texts=tuple(ANSWERS)):
    made = []
    for question in questions:
        for text in texts:
            made.append(
                [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": text},
                ]
            )
    return made


# The loss


def heads_of(counts, rows=6, seed=0):
    """Random states, heads of these numbers of classes, and their logits."""
    import torch

    torch.manual_seed(seed)
    states = torch.randn(rows, 5)
    heads = [torch.nn.Linear(5, count) for count in counts]
    return heads, [head(states) for head in heads]


def test_a_head_without_labels_has_a_gradient_of_exactly_zero():
    import torch

    heads, logits = heads_of([2, 5, 3])
    classes = torch.tensor([[0, -100, 2], [1, -100, -100]] * 3)
    masked_loss(logits, classes).backward()
    assert not heads[1].weight.grad.any()
    assert not heads[1].bias.grad.any()
    for head in (heads[0], heads[2]):
        assert head.weight.grad.abs().min() > 0


def test_an_answer_without_a_label_of_a_head_does_not_move_that_head():
    import torch

    def gradient(classes):
        heads, logits = heads_of([2, 5])
        masked_loss(logits, torch.tensor(classes)).backward()
        return heads[1].weight.grad

    some = [[0, 4], [1, 0], [0, -100], [1, -100], [0, -100], [1, -100]]
    turned = [*some[:2], *([1 - row[0], -100] for row in some[2:])]
    torch.testing.assert_close(gradient(some), gradient(turned), rtol=0, atol=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 4)), min_size=6, max_size=6))
def test_the_loss_is_the_mean_over_labelled_heads_whatever_else_is_not_labelled(labels):
    import torch

    _, logits = heads_of([2, 5, 3])
    classes = torch.tensor([[a if a >= 0 else -100, b if b >= 0 else -100] for a, b in labels])
    by_hand = []
    for row, (a, b) in enumerate(labels):
        losses = [
            -float(logits[head][row].detach().log_softmax(-1)[level])
            for head, level in ((0, a), (1, b))
            if level >= 0
        ]
        if losses:
            by_hand.append(sum(losses) / len(losses))
    loss = masked_loss(logits[:2], classes)
    assert loss.item() == pytest.approx(np.mean(by_hand) if by_hand else 0.0, abs=1e-5)
    unlabelled = torch.full((len(labels), 1), -100)
    more = masked_loss(logits, torch.cat([classes, unlabelled], dim=1))
    assert more.item() == loss.item()


def test_heads_recover_known_posteriors():
    """On features whose class posteriors are known, the loss comes near their entropy."""
    import torch

    generator = torch.Generator().manual_seed(4)
    features = torch.randn(4000, 3, generator=generator)
    columns, entropies, heads = [], [], []
    for count in (2, 4):
        weights = 1.5 * torch.randn(3, count, generator=generator)
        posterior = (features @ weights).softmax(-1)
        columns.append(torch.multinomial(posterior, 1, generator=generator))
        entropies.append(float(-(posterior * posterior.log()).sum(-1).mean()))
        heads.append(torch.nn.Linear(3, count))
    classes = torch.cat(columns, dim=1)
    classes[::2, 1] = -100  # the second objective is judged on half of the answers
    parameters = [p for head in heads for p in head.parameters()]
    optimiser = torch.optim.LBFGS(parameters, max_iter=100)

    def closure():
        optimiser.zero_grad()
        loss = masked_loss([head(features) for head in heads], classes)
        loss.backward()
        return loss

    optimiser.step(closure)
    for number, head in enumerate(heads):
        own = classes[:, number] >= 0
        loss = torch.nn.functional.cross_entropy(head(features)[own], classes[own, number])
        assert loss.item() == pytest.approx(entropies[number], abs=0.03)


# Calibration


@settings(deadline=None, max_examples=20)
@given(st.floats(0.3, 5), st.integers(0, 1000))
def test_a_temperature_that_was_put_in_is_found_again(temperature, seed):
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((4000, 3))
    noise = generator.gumbel(size=logits.shape)
    classes = (logits + noise).argmax(axis=1)  # drawn from softmax(logits)
    assert fit_temperature(temperature * logits, classes) == pytest.approx(temperature, rel=0.15)


def test_figures_of_a_classifier_that_always_says_the_commonest_class():
    classes = [5] * 60 + [1] * 30 + [2] * 10
    said = [5] * 100
    assert balanced_accuracy(classes, said) == pytest.approx(1 / 3)
    assert balanced_accuracy(classes, said, at_least=30) == pytest.approx(1 / 2)
    assert balanced_accuracy(classes, said, at_least=61) is None
    right = [true == level for true, level in zip(classes, said, strict=True)]
    assert calibration_error([0.9] * 100, right) == pytest.approx(0.3)
    assert calibration_error([1.0] * 100, right) == pytest.approx(0.4)
    # All of the first fifty are right, ten of the last.
    said = [0.65] * 50 + [0.95] * 50
    assert calibration_error(said, right) == pytest.approx((0.35 + 0.75) / 2)


# What is learned from


def test_levels_are_drawn_evenly_within_the_tokens():
    levels = [{"care": 5}] * 90 + [{"care": 1}] * 10 + [{"care": 3, "brevity": 2}] * 30
    levels += [{"brevity": 4}] * 15
    heads, _ = head_cards(levels)
    drawn = draw(levels, heads, [7] * len(levels), 7 * 203, seed=1)
    assert len(drawn) == 203
    counts = Counter()
    for row in drawn:
        counts.update(levels[row].items())
    # Answers of care 3 also have a level of brevity, so both are seen twice as often.
    assert counts["care", 5] == pytest.approx(203 / 5, abs=1)
    assert counts["care", 1] == pytest.approx(203 / 5, abs=1)
    assert counts["care", 3] == counts["brevity", 2] == pytest.approx(203 * 2 / 5, abs=1)
    # None is seen again before all others of its level.
    seen = Counter(row for row in drawn if levels[row] == {"care": 1})
    assert set(seen.values()) <= {4, 5}
    assert drawn == draw(levels, heads, [7] * len(levels), 7 * 203, seed=1)
    assert drawn != draw(levels, heads, [7] * len(levels), 7 * 203, seed=2)


def test_held_out_prompts_are_not_learned_from():
    prompts = [f"p{k // 4}" for k in range(800)]
    rows = LabelledRows([[k] for k in range(800)], [{"care": 5}] * 800, prompts, {})
    learned, held = split(rows, 0.25, seed=3)
    assert not set(learned.prompts) & set(held.prompts)
    assert sorted(learned.ids + held.ids) == sorted(rows.ids)
    assert len(held.ids) == pytest.approx(200, abs=60)
    assert split(rows, 0.25, seed=4)[1].prompts != held.prompts


def test_levels_with_few_answers_are_absent_and_objectives_with_one_level_are_left_out():
    few, enough = MIN_ANSWERS - 1, MIN_ANSWERS
    levels = [{"care": 5}] * enough + [{"care": 2}] * enough + [{"care": 3}] * few
    levels += [{"safety": 5}] * 50 + [{"safety": 1}] * few
    heads, left_out = head_cards(levels)
    (care,) = heads
    assert (care.classes, care.absent) == ([2, 5], [1, 3, 4])
    assert care.answers == {2: enough, 5: enough}
    assert "fewer than two levels" in left_out["safety"]


# Training


def test_it_learns_the_levels_of_answers_and_names_what_it_does_not_know(trained):
    _, model = trained
    care, brevity = model.card.head("care"), model.card.head("brevity")
    assert (care.classes, care.absent) == ([1, 3, 5], [2, 4])
    assert (brevity.classes, brevity.absent) == ([2, 4], [1, 3, 5])
    readings = model.read(chats([f"how do i store the river {k} ?" for k in range(5)]))
    right = 0
    for number, reading in enumerate(readings):
        levels = list(ANSWERS.values())[number % len(ANSWERS)]
        for objective, level in levels.items():
            own = reading.probabilities[objective]
            assert sum(own.values()) == pytest.approx(1)
            right += max(own, key=own.get) == level
    assert right >= 0.9 * 2 * len(readings)
    assert care.held_out > 0
    assert care.balanced_accuracy > 0.8
    with pytest.raises(UsageError, match="no head for 'honesty'"):
        model.card.head("honesty")


def test_it_is_saved_as_safetensors_and_json_alone(trained, tiny_model):
    _, model = trained
    names = sorted(path.name for path in model.folder.iterdir())
    assert names == [
        "adapter_config.json",
        "adapter_model.safetensors",
        HEADS,
        CARD,
        SCALE,
    ]
    check_adapter(model.folder, tiny_model)
    assert model.card.base == model_digest(tiny_model)


def test_what_is_loaded_is_what_was_trained_bit_for_bit(order, tiny_model, monkeypatch):
    import training.methods.reward_model as module

    kept = {}
    original = module.calibrated

    def keep(heads, logits, levels):
        kept["logits"], kept["heads"] = logits, heads
        return original(heads, logits, levels)

    monkeypatch.setattr(module, "calibrated", keep)
    job, place = order("bits")
    result = train(job, place)
    rows = module.read_answers(
        Path(place.paths[JUDGED_ANSWERS]),
        module.ChatReader(module.load_tokenizer(tiny_model), job.recipe.max_length),
    )
    _, held = split(rows, job.recipe.held_out, job.seed)
    loaded = RewardModel(Path(result.adapter), tiny_model)
    again = module.head_logits(*loaded._loaded, held.ids)
    for mine, theirs in zip(kept["logits"], again, strict=True):
        assert (mine == theirs).all()
    readings = loaded.read(chats(QUESTIONS[:4]))
    assert readings == RewardModel(Path(result.adapter), tiny_model).read(chats(QUESTIONS[:4]))


def test_tokens_are_counted_and_are_at_most_what_the_recipe_says(order, trained):
    result, _ = trained
    job, place = order("counted", epochs=3)
    from training.methods.reward_model import ChatReader, load_tokenizer, read_answers

    reader = ChatReader(load_tokenizer(Path(place.paths[BASE])), job.recipe.max_length)
    rows = read_answers(Path(place.paths[JUDGED_ANSWERS]), reader)
    everything = sum(map(len, rows.ids))
    assert 0 < result.tokens <= job.recipe.usage(everything).trained
    assert result.tokens > 0.7 * job.recipe.usage(everything).trained
    assert result.supervised > result.steps


def test_the_same_job_gives_the_same_model_and_another_seed_another(order):
    def files(out, **changes):
        result = train(*order(out, **changes))
        return {path.name: path.read_bytes() for path in Path(result.adapter).iterdir()}

    one = files("one", max_steps=4)
    assert files("two", max_steps=4) == one
    assert files("three", max_steps=4, seed=2)[HEADS] != one[HEADS]


def test_an_interrupted_training_continues_bitwise_with_its_heads(order):
    whole = train(*order("whole", save_every=2, max_steps=8))
    steps = []

    def note(event):
        steps.append(event.get("step", 0))

    job, place = order("cut", save_every=2, max_steps=8)
    with pytest.raises(StopRequested):
        train(job, place, note, lambda: steps[-1:] >= [5])
    assert not Path(place.out).exists()
    steps.clear()
    again = train(job, place, note)
    assert min(steps) == 6
    for name in (HEADS, "adapter_model.safetensors", CARD):
        one, other = Path(whole.adapter) / name, Path(again.adapter) / name
        assert one.read_bytes() == other.read_bytes()


def test_answers_that_cannot_be_read_are_dropped_counted_and_named(order, tiny_model):
    long = answer("long", "how ?", "keep it dry . " * 40, {"care": 1})
    control = answer("control", "how ?", "keep <|end|> it", {"care": 1})
    result = train(*order("dropped", answers=[*judged(), long, control], max_steps=1))
    dropped = RewardModel(Path(result.adapter), tiny_model).card.dropped
    assert sum(dropped.values()) == 2
    assert any("of at most 64" in reason for reason in dropped)
    assert any("control token" in reason for reason in dropped)


def test_the_scale_of_the_reward_is_measured_on_held_out_answers(trained):
    _, model = trained
    scale = read_scale(model.folder)
    for head in model.card.heads:
        assert sorted(scale.levels[head.objective]) == head.classes
        assert scale.answers[head.objective] >= head.held_out > 0
    assert scale.flat() == []


# Reading


def test_a_chat_that_cannot_be_read_has_a_reason_and_does_not_disturb_others(trained):
    _, model = trained
    good = chats(QUESTIONS[:1])
    long = chats(["how ?"], ["keep it dry . " * 40])
    open_ended = [[{"role": "user", "content": "how ?"}]]
    mixed = model.read([*long, *good, *open_ended, []])
    assert mixed[1:-2] == model.read(good)
    for reading, reason in ((mixed[0], "at most 64"), (mixed[-2], "end with an answer")):
        assert reading.probabilities == {}
        assert reason in reading.reason
    assert mixed[-1].reason


def test_what_else_is_read_at_once_changes_an_answer_by_rounding_only(trained):
    _, model = trained
    many = model.read(chats(QUESTIONS[:8]))
    (alone,) = model.read(chats(QUESTIONS[:1])[:1])
    for objective, levels in alone.probabilities.items():
        for level, probability in levels.items():
            assert many[0].probabilities[objective][level] == pytest.approx(probability, abs=1e-5)


def test_a_folder_without_its_weights_is_refused_before_a_pickle_is_looked_for(
    trained, tiny_model, tmp_path
):
    _, model = trained
    for name in ("adapter_config.json", HEADS, CARD):
        (tmp_path / name).write_bytes((model.folder / name).read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors is missing"):
        RewardModel(tmp_path, tiny_model).read(chats(QUESTIONS[:1]))
    (tmp_path / CARD).write_text(json.dumps({"version": 2}))
    with pytest.raises(UsageError, match="not the card"):
        RewardModel(tmp_path, tiny_model).read(chats(QUESTIONS[:1]))


# What cannot be trained on


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{}", "not a judged answer"),
        (
            '{"id": "x", "messages": [{"role": "user", "content": "?"}], "levels": {"a": 1}}',
            "not an",
        ),
        ("nonsense", "not a judged answer"),
    ],
)
def test_a_broken_line_is_named(order, line, reason):
    with pytest.raises(UsageError, match=rf"jsonl:161: .*{reason}"):
        train(*order("broken", lines=f"{line}\n"))


@pytest.mark.parametrize("levels", [{}, {"care": 0}, {"care": 6}, {"care": 2.5}, {"care": True}])
def test_a_level_off_the_scale_is_refused(levels):
    with pytest.raises(ValueError, match=r"level|number|objective|integer"):
        answer("x", "how ?", "dry .", levels)


def test_answers_that_all_have_one_level_train_nothing(order):
    same = [answer(str(k), QUESTIONS[k], "keep it dry .", {"care": 5}) for k in range(40)]
    with pytest.raises(TrainingError, match="train no head"):
        train(*order("same", answers=same))


def test_rows_are_never_packed():
    with pytest.raises(ValueError, match="packing"):
        RewardModelRecipe(packing=True)


def test_head_cards_name_at_least_two_classes():
    with pytest.raises(ValueError, match="at least 2"):
        HeadCard(objective="care", classes=[5], answers={5: 10}, absent=[1, 2, 3, 4])
