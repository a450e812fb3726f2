"""Policy optimisation the real way: a bandit of nine answers, whose optimum and gradient are known."""

import itertools
import math
from pathlib import Path

import pytest

from eval.rendering.ends import stop_ids
from eval.rendering.render import texts_of
from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.types.recipes import RlRecipe, worst_case
from mosaic.core.types.runs import BASE, START, TrainJob, Workplace
from mosaic.lab.pretrain import SPECIAL
from training.methods.rl import (
    Answers,
    check_recipe,
    make_trainer,
    optimise,
    policy,
    prompt_order,
)
from training.models.adapter import check_adapter, model_digest
from training.models.tokenizer import load_tokenizer

WORDS = ["[unk]", "a", "b", "c"]
A, B = 6, 7  # the tokens of two words
CHAT = [{"role": "system", "content": "a 1 of 5 ."}, {"role": "user", "content": "b"}]
SMALL = {"learning_rate": 0.02, "scheduler": "constant", "warmup_ratio": 0, "weight_decay": 0}


@pytest.fixture(scope="module")
def bandit(word_model):
    return word_model(WORDS)


def job_of(base, tmp_path, out="adapter", seed=1, start=None, **recipe):
    settings = {**SMALL, "batch_size": 8, "n": 4, "max_new_tokens": 1, "lora_r": 4, **recipe}
    inputs = {BASE: model_digest(base)}
    paths = {BASE: str(base)}
    if start is not None:
        paths[START] = str(start)
    job = TrainJob(
        recipe=RlRecipe(**settings),
        inputs=inputs,
        seed=seed,
        start_from=None if start is None else str(start),
    )
    return job, Workplace(paths=paths, out=str(tmp_path / out), work=str(tmp_path / f"{out}.work"))


def probabilities(base, adapter=None):
    """What the policy gives each of the nine tokens as an answer to `CHAT`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    (text,) = texts_of(tokenizer, [CHAT], answer_next=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0, -1].double().softmax(-1).tolist()


def by_answer(rewards, otherwise=0.0):
    """A reward of each answer by its text."""

    def judge(prompts, answers):
        return [rewards.get(answer, otherwise) for answer in answers]

    return judge


def total_variation(one, other):
    return sum(abs(p - q) for p, q in zip(one, other, strict=True)) / 2


def tilted(reference, rewards, kl):
    """pi_ref exp(r / b) / Z over the nine tokens."""
    weights = []
    for token, p in enumerate(reference):
        word = [*SPECIAL, *WORDS][token]
        weights.append(p * math.exp(rewards.get(word, 0.0) / kl))
    return [w / sum(weights) for w in weights]


# What is learned


def test_the_best_policy_is_the_reference_tilted_by_the_reward(bandit, tmp_path):
    rewards = {"a": 1.0, "b": 0.5, "c": -0.5}
    recipe = {"kl": 0.5, "batch_size": 64, "n": 8, "max_steps": 150}
    job, place = job_of(bandit, tmp_path, **recipe)
    result = optimise(job, place, [CHAT] * 1200, by_answer(rewards))
    reference = probabilities(bandit)
    best = tilted(reference, rewards, 0.5)
    learned = probabilities(bandit, result.adapter)
    assert total_variation(learned, best) < 0.05
    # A coefficient twice or half as large would have been seen, and so would no learning.
    for other in (0.25, 1.0):
        assert total_variation(learned, tilted(reference, rewards, other)) > 0.1
    assert total_variation(learned, reference) > 0.2


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_what_is_rewarded_becomes_likelier_and_a_larger_coefficient_holds_it_back(
    bandit, tmp_path, algorithm
):
    reference = probabilities(bandit)
    moved = {}
    for kl in (0.01, 5.0):
        recipe = {"kl": kl, "algorithm": algorithm, "batch_size": 32, "n": 8, "max_steps": 25}
        job, place = job_of(bandit, tmp_path, f"{algorithm} {kl}", **recipe)
        result = optimise(job, place, [CHAT] * 100, by_answer({"a": 1.0}))
        moved[kl] = probabilities(bandit, result.adapter)
    assert reference[A] < 0.1
    assert moved[0.01][A] > 0.5
    assert total_variation(moved[5.0], reference) < 0.1


def prescribed(trainer, groups):
    """The trainer, answering with these groups of token ids instead of drawing its own."""

    def answers(*asked, **rest):
        return [[token] for group in groups for token in group]

    trainer._generate_single_turn = answers
    return trainer


def gradient_over_all_groups(base, tmp_path, out, rewards, kl, shift=0.0):
    """The mean gradient of the RLOO loss over all pairs of answers, by their probability; beside it
    that of -(E[r] - b KL(pi || ref)), the objective itself. Of a policy that has left its reference.
    """
    import torch
    from transformers import TrainerCallback

    job, place = job_of(base, tmp_path, out, kl=kl, n=2, batch_size=2, lora_r=4)
    tokenizer = load_tokenizer(base)
    stops = stop_ids(base, tokenizer)
    judge = by_answer({w: r + shift for w, r in rewards.items()}, otherwise=shift)
    answers = Answers(judge, tokenizer, frozenset(stops))
    from datasets import Dataset

    data = Dataset.from_dict({"prompt": [CHAT]})
    model = policy(job, place, stops)
    trainer = make_trainer(job, place, model, tokenizer, data, answers, TrainerCallback())
    torch.manual_seed(11)
    learned = [p for p in trainer.model.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.data += 0.2 * torch.randn_like(parameter)
    (text,) = texts_of(tokenizer, [CHAT], answer_next=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    logs = trainer.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    with trainer.model.disable_adapter(), torch.no_grad():
        reference = trainer.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    told = {token: rewards.get(word, 0.0) for token, word in enumerate([*SPECIAL, *WORDS])}
    values = torch.tensor([told[token] for token in range(len(logs))])
    objective = (logs.exp() * (values - kl * (logs - reference))).sum()
    exact = torch.autograd.grad(-objective, learned)
    chances = logs.detach().exp()
    estimated = [torch.zeros_like(parameter) for parameter in learned]
    trainer.model.train()
    for pair in itertools.product(range(len(logs)), repeat=2):
        chance = float(chances[pair[0]] * chances[pair[1]])
        batch = prescribed(trainer, [pair])._generate_and_score_completions(
            [{"prompt": CHAT}, {"prompt": CHAT}]
        )
        loss = trainer.compute_loss(trainer.model, batch)
        for total, part in zip(estimated, torch.autograd.grad(loss, learned), strict=True):
            total += chance * part
    return torch.cat([g.flatten() for g in estimated]), torch.cat([g.flatten() for g in exact])


def test_the_gradient_over_all_groups_of_answers_is_that_of_the_objective(bandit, tmp_path):

    rewards = {"a": 1.0, "b": -2.0, "c": 0.5}
    estimated, exact = gradient_over_all_groups(bandit, tmp_path, "plain", rewards, kl=0.3)
    assert exact.norm() > 1e-3
    assert (estimated - exact).norm() < 1e-3 * exact.norm()
    # A constant that is added to all rewards changes nothing.
    shifted, _ = gradient_over_all_groups(bandit, tmp_path, "shifted", rewards, kl=0.3, shift=7.0)
    assert (shifted - estimated).norm() < 1e-3 * exact.norm()
    # Nor would any coefficient do: the objective of another one has another gradient.
    _, other = gradient_over_all_groups(bandit, tmp_path, "other", rewards, kl=0.6)
    assert (other - exact).norm() > 0.05 * exact.norm()


# Where it starts, and what is saved


def weights(adapter):
    from safetensors.numpy import load_file

    return load_file(Path(adapter) / "adapter_model.safetensors")


def test_only_the_trained_adapter_is_saved_and_the_reference_is_where_it_began(bandit, tmp_path):
    first = optimise(
        *job_of(bandit, tmp_path, "first", batch_size=32, max_steps=20, kl=0.0),
        [CHAT] * 200,
        by_answer({"a": 1.0}),
    )
    begun = probabilities(bandit, first.adapter)
    assert begun[A] > probabilities(bandit)[A] + 0.1
    # Without any reward a large coefficient holds the policy to the adapter that it began with.
    job, place = job_of(bandit, tmp_path, "held", start=first.adapter, kl=1.0, max_steps=10)
    held = optimise(job, place, [CHAT] * 200, by_answer({}))
    assert total_variation(probabilities(bandit, held.adapter), begun) < 0.03
    # With one it moves on from there.
    job, place = job_of(bandit, tmp_path, "moved", start=first.adapter, kl=0.0, max_steps=20)
    moved = optimise(job, place, [CHAT] * 200, by_answer({"b": 2.0}))
    assert probabilities(bandit, moved.adapter)[B] > begun[B]
    for result in (first, held, moved):
        names = sorted(path.name for path in Path(result.adapter).iterdir())
        assert names == ["adapter_config.json", "adapter_model.safetensors"]
        check_adapter(Path(result.adapter), bandit)
    before, after = weights(first.adapter), weights(moved.adapter)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_the_same_job_gives_the_same_adapter_and_another_seed_another(bandit, tmp_path):
    def run(out, seed=1):
        job, place = job_of(bandit, tmp_path, out, seed=seed, max_steps=4)
        result = optimise(job, place, [CHAT] * 8, by_answer({"a": 1.0}))
        return (Path(result.adapter) / "adapter_model.safetensors").read_bytes()

    assert run("one") == run("two")
    assert run("other", seed=2) != run("one again")


@pytest.mark.parametrize("started", [False, True])
def test_an_interrupted_training_continues_bitwise(bandit, tmp_path, started):
    start = None
    if started:
        job, place = job_of(bandit, tmp_path, "start", max_steps=3)
        start = optimise(job, place, [CHAT] * 8, by_answer({"c": 1.0})).adapter
    judge = by_answer({"a": 1.0})
    settings = {"max_steps": 6, "save_every": 2, "start": start, "kl": 0.1}
    whole = optimise(*job_of(bandit, tmp_path, "whole", **settings), [CHAT] * 12, judge)
    steps = []

    def note(event):
        steps.append(event.get("step", 0))

    def stop():
        return steps[-1:] >= [3]

    job, place = job_of(bandit, tmp_path, "cut", **settings)
    with pytest.raises(StopRequested):
        optimise(job, place, [CHAT] * 12, judge, note, stop)
    assert not Path(place.out).exists()
    again = optimise(job, place, [CHAT] * 12, judge)
    one, other = weights(whole.adapter), weights(again.adapter)
    assert all((one[name] == other[name]).all() for name in one)
    assert (again.tokens, again.sampled) == (whole.tokens, whole.sampled)


# What the policy reads and writes


def test_prompts_are_read_as_generation_reads_them_and_answers_end_as_its_do(tiny_model, tmp_path):
    """On a base whose prompts and answers have many tokens."""
    from eval.generators.base import TransformersGeneratorConfig
    from eval.generators.transformers import TransformersGenerator

    tokenizer = load_tokenizer(tiny_model)
    chats = [
        [{"role": "user", "content": "how do i store the bread ?"}],
        [
            {"role": "system", "content": "bread 2 of 5 ."},
            {"role": "user", "content": "tell me a story ."},
            {"role": "assistant", "content": "the bridge is old ."},
            {"role": "user", "content": "add two ."},
        ],
    ]
    job, place = job_of(tiny_model, tmp_path, max_new_tokens=12, max_length=128, batch_size=8)
    stops = stop_ids(tiny_model, tokenizer)
    answers = Answers(by_answer({}), tokenizer, frozenset(stops))
    from datasets import Dataset
    from transformers import TrainerCallback

    model = policy(job, place, stops)
    data = Dataset.from_dict({"prompt": chats})
    trainer = make_trainer(job, place, model, tokenizer, data, answers, TrainerCallback())
    read, _, _ = trainer._tokenize_prompts(chats)
    generator = TransformersGenerator(tiny_model, TransformersGeneratorConfig())
    assert [list(ids) for ids in read] == generator._encode(chats)
    assert set(trainer.generation_config.eos_token_id) == set(stops)
    assert trainer.generation_config.temperature == 1.0
    assert (trainer.generation_config.top_k, trainer.generation_config.top_p) == (0, 1.0)
    ids = tokenizer("keep it dry .", add_special_tokens=False)["input_ids"]
    for row in (ids, [*ids, *sorted(stops)[:1], *ids]):
        assert answers.text(row) == generator._turn(row, set(stops)).text == "keep it dry ."


def test_every_token_that_is_drawn_or_learned_from_is_counted(tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    chats = [[{"role": "user", "content": "add " + "one , " * k + "."}] for k in range(1, 6)]
    drawn, asked = [], []

    def judge(prompts, answers):
        asked.extend(lengths_of(tokenizer, prompts))
        drawn.extend(answers)
        return [float(len(answer)) for answer in answers]

    settings = {"n": 4, "batch_size": 8, "max_new_tokens": 6, "max_length": 128, "epochs": 3}
    job, place = job_of(tiny_model, tmp_path, **settings)
    told = []
    result = optimise(job, place, chats, judge, told.append)
    # 15 places, two a step: seven steps of eight answers, and one place that fills none.
    assert result.steps == 7
    assert len(drawn) == 7 * 8
    assert {"stage": "saved", "left_out": 1} in told
    assert result.tokens == sum(asked) + result.sampled
    assert len(drawn) <= result.sampled <= 6 * len(drawn)
    assert result.supervised == result.sampled
    bound = worst_case(job.recipe, lengths_of(tokenizer, chats))
    assert result.tokens <= bound.trained
    assert result.sampled <= bound.sampled
    assert 0 < result.real_token_share <= 1


def lengths_of(tokenizer, chats):
    texts = texts_of(tokenizer, chats, answer_next=True)
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


# What cannot be trained


def test_prompts_that_fill_no_step_are_refused(bandit, tmp_path):
    job, place = job_of(bandit, tmp_path)
    with pytest.raises(UsageError, match="do not fill one step of 2"):
        optimise(job, place, [CHAT], by_answer({}))


def test_a_prompt_without_room_for_its_answer_is_refused(bandit, tmp_path):
    job, place = job_of(bandit, tmp_path, max_length=8, max_new_tokens=4)
    with pytest.raises(UsageError, match=r"prompt 0 has .* tokens"):
        optimise(job, place, [CHAT] * 4, by_answer({}))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"batch_size": 6, "n": 4}, "not a multiple of n"),
        ({"packing": True}, "never packed"),
        ({"lora_dropout": 0.1}, "without dropout"),
        ({"n": 1, "batch_size": 4}, "greater than or equal to 2"),
    ],
)
def test_settings_that_make_no_whole_groups_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        RlRecipe(**settings)


def test_every_epoch_has_every_prompt_once():
    order = prompt_order(10, RlRecipe(batch_size=8, n=4, epochs=2), seed=3)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_a_template_that_leaves_out_system_messages_is_refused(bandit, tmp_path):
    template = tmp_path / "silent.jinja"
    asked = "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}"
    template.write_text(asked + load_tokenizer(bandit).chat_template)
    check_recipe(bandit, RlRecipe())
    with pytest.raises(UsageError, match=r"takes no system message.*it leaves them out"):
        check_recipe(bandit, RlRecipe(), template)
