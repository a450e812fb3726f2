"""One policy for many wishes: what a prompt asks for decides the level of the answer.

The reward model, the mapping and the policy are real; the base knows a handful of words.
"""

import json
import random
import shutil
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from eval.generators.base import TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.reward_model import RewardModel
from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.types.data import WishedChat
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import (
    BASE,
    START,
    TRAINING_SET,
    Sampling,
    SftRecipe,
    TrainJob,
    Workplace,
)
from prompts.levels import wish
from training.methods import reward_model, rl, sft
from training.methods.level_reward import read_scale, reward
from training.models.adapter import model_digest
from training.models.chat_template import tokenise
from training.models.tokenizer import load_tokenizer

WORDS = [
    "[unk]",
    "a",
    "b",
    "c",
    "care",
    "of",
    ".",
    "1",
    "2",
    "3",
    "4",
    "5",
    "u",
    "v",
    "w",
    "x",
    "y",
    "z",
]
# Of each level several answers, and questions of which some are kept for measuring.
ANSWERS = {"a": 1, "a a": 1, "b": 3, "b b": 3, "c": 5, "c c": 5}
PAIRS = [f"{one} {other}" for one in "uvwxyz" for other in "uvwxyz"]
QUESTIONS = [pair for number, pair in enumerate(PAIRS) if number % 5]
UNSEEN = PAIRS[::5]
LEVELS = [1, 3, 5]


def chat(question, answer=None, level=None):
    messages = [{"role": "user", "content": question}]
    if level is not None:
        messages.insert(0, {"role": "system", "content": wish({"care": level})})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages


@pytest.fixture(scope="module")
def base(word_model):
    return word_model(WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("control")


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def order(base, folder, out, recipe, inputs, seed=1):
    job = TrainJob(
        recipe=recipe,
        inputs={BASE: model_digest(base), **dict.fromkeys(inputs, "0")},
        seed=seed,
    )
    paths = {BASE: str(base), **{name: str(path) for name, path in inputs.items()}}
    return job, Workplace(paths=paths, out=str(folder / out), work=str(folder / f"{out}.work"))


@pytest.fixture(scope="module")
def judges(base, folder):
    """Two reward models of one objective, of which the policy is trained by the first only."""
    lines = []
    for question in QUESTIONS:
        for answer, level in ANSWERS.items():
            line = {"id": f"{question} {answer}", "messages": chat(question, answer)}
            lines.append({**line, "levels": {"care": level}})
    inputs = {reward_model.JUDGED_ANSWERS: written(folder / "judged.jsonl", lines)}
    recipe = reward_model.RewardModelRecipe(
        learning_rate=0.02, batch_size=16, lora_r=8, max_length=64, epochs=2
    )
    made = []
    for seed in (1, 2):
        trained = reward_model.train(*order(base, folder, f"judge {seed}", recipe, inputs, seed))
        made.append(RewardModel(Path(trained.adapter), base))
    return made


@pytest.fixture(scope="module")
def started(base, folder):
    """An adapter that knows all answers, and gives any of them whatever is wished for."""
    generator = random.Random(1)
    rows = []
    for question in QUESTIONS * 8:
        answer, level = generator.choice(list(ANSWERS)), generator.randint(1, 5)
        rows.append(chat(question, answer, level))
    ids, _ = tokenise(load_tokenizer(base), rows)
    table = {
        "id": [str(number) for number in range(len(rows))],
        "messages": rows,
        "n_tokens": [len(row) for row in ids],
        "weight": [1.0] * len(rows),
    }
    path = folder / "rows.parquet"
    pq.write_table(pa.table(table), path)
    recipe = SftRecipe(
        learning_rate=0.01, batch_size=16, lora_r=8, max_length=64, epochs=2, weight_decay=0
    )
    return sft.train(*order(base, folder, "started", recipe, {TRAINING_SET: path})).adapter


@pytest.fixture(scope="module")
def policy(base, folder, judges, started):
    """An adapter that was trained for wishes from where `started` stands."""
    lines = []
    for question in QUESTIONS:
        for level in LEVELS:
            line = {"id": f"{question} {level}", "messages": chat(question, level=level)}
            lines.append(line)
    inputs = {
        rl.WISHED_CHATS: written(folder / "wished.jsonl", lines),
        rl.REWARD_MODEL: judges[0].folder,
    }
    recipe = rl.RlRecipe(
        learning_rate=0.004,
        scheduler="constant",
        batch_size=64,
        n=8,
        kl=0.5,
        max_new_tokens=3,
        max_length=64,
        lora_r=8,
        epochs=10,
        weight_decay=0,
    )
    job, place = order(base, folder, "policy", recipe, inputs)
    job = job.model_copy(update={"start_from": "0"})
    place.paths[START] = started
    return Path(rl.train(job, place).adapter)


def given_levels(base, adapter, judge):
    """(requested level, level that the judge gives), of answers to unseen questions."""
    generator = TransformersGenerator(base, TransformersGeneratorConfig(max_new_tokens=3))
    prompts = []
    for level in LEVELS:
        for question in UNSEEN:
            system = wish({"care": level})
            known = {"id": f"{level} {question}", "system": system, "turns": [question]}
            prompts.append(Prompt(**known, slice="all", weight=1))
    sampling = Sampling(n=2, temperature=1.0, seed=3)
    responses = generator.generate(prompts, adapter, sampling)
    asked = [prompt for prompt in prompts for _ in range(2)]
    chats = [chat(p.turns[0], r.answers[0]) for p, r in zip(asked, responses, strict=True)]
    pairs = []
    for prompt, reading in zip(asked, judge.read(chats), strict=True):
        own = reading.probabilities["care"]
        pairs.append((int(prompt.id[0]), max(own, key=own.get)))
    return pairs


def test_the_level_of_answers_rises_with_the_wish_for_a_judge_that_did_not_train_it(
    base, judges, policy, started
):
    before = given_levels(base, Path(started), judges[1])
    after = given_levels(base, policy, judges[1])
    assert abs(spearmanr(*zip(*before, strict=True)).statistic) < 0.3
    assert spearmanr(*zip(*after, strict=True)).statistic > 0.6
    means = [fmean(given for asked, given in after if asked == level) for level in LEVELS]
    assert means[0] < means[1] < means[2]


def test_an_answer_that_repeats_the_wish_earns_no_more_by_any_judge(judges):
    fooled = 0
    for judge in judges:
        scale = read_scale(judge.folder)
        wished = {}
        for question in UNSEEN:
            for wanted in LEVELS:
                asked = WishedChat(id="asked", messages=chat(question, level=wanted))
                wished |= rl.wishes([asked], scale)
        rewarded = rl.LevelReward(judge, scale, wished)
        for answer in ANSWERS:
            for wanted in LEVELS:
                words = wish({"care": wanted})
                prompts = [chat(question, level=wanted) for question in UNSEEN]
                plain = rewarded(prompts, [answer] * len(prompts))
                for repeating in (f"{answer} {words}", f"{words} {answer}", words):
                    after = rewarded(prompts, [repeating] * len(prompts))
                    assert all(a <= b for a, b in zip(after, plain, strict=True))
                    read = judge.read([chat(question, repeating) for question in UNSEEN])
                    fooled += sum(
                        reward(r.probabilities, {"care": wanted}, scale) > b
                        for r, b in zip(read, plain, strict=True)
                    )
        assert rewarded.unrewarded["it repeats its wish"] == 3 * len(LEVELS) * len(ANSWERS) * len(
            UNSEEN
        )
    # The reward models alone would have paid for it.
    assert fooled > 0


def test_a_training_with_a_reward_model_continues_bitwise(base, folder, judges):
    lines = []
    for question in QUESTIONS[:8]:
        lines.append({"id": question, "messages": chat(question, level=3)})
    inputs = {
        rl.WISHED_CHATS: written(folder / "few.jsonl", lines),
        rl.REWARD_MODEL: judges[0].folder,
    }
    recipe = rl.RlRecipe(batch_size=8, max_new_tokens=3, max_length=64, lora_r=4, save_every=2)
    whole = rl.train(*order(base, folder, "whole", recipe, inputs))
    steps = []

    def note(event):
        steps.append(event.get("step", 0))

    job, place = order(base, folder, "cut", recipe, inputs)
    with pytest.raises(StopRequested):
        rl.train(job, place, note, lambda: steps[-1:] >= [2])
    again = rl.train(job, place)
    name = "adapter_model.safetensors"
    one, other = (Path(result.adapter) / name for result in (whole, again))
    assert one.read_bytes() == other.read_bytes()
    # What is asked for again after its last step is only saved.
    shutil.rmtree(place.out)
    last = rl.train(job, place)
    assert (Path(last.adapter) / name).read_bytes() == one.read_bytes()
    assert (last.tokens, last.sampled) == (whole.tokens, whole.sampled)


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ("care 2 of 5 .", "level 2 is absent"),
        ("zeal 3 of 5 .", "'zeal' is not a dimension"),
        ("care 6 of 5 .", "not one of 1 to 5"),
        ("care", "no wish"),
    ],
)
def test_a_wish_that_cannot_be_rewarded_is_refused_before_anything_is_trained(
    base, folder, judges, system, reason
):
    good = {"id": "good", "messages": chat("u v", level=3)}
    bad = {"id": "bad", "messages": [{"role": "system", "content": system}, *chat("u v")]}
    inputs = {
        rl.WISHED_CHATS: written(folder / "bad.jsonl", [good, bad]),
        rl.REWARD_MODEL: judges[0].folder,
    }
    job, place = order(base, folder, "refused", rl.RlRecipe(), inputs)
    with pytest.raises(UsageError, match=rf"bad\.jsonl:2: .*{reason}"):
        rl.train(job, place)
    assert not Path(place.work).exists()


def test_a_reward_model_of_another_base_is_refused(base, folder, judges, tiny_model):
    inputs = {rl.WISHED_CHATS: folder / "none", rl.REWARD_MODEL: judges[0].folder}
    with pytest.raises(UsageError, match="another base"):
        rl.train(*order(tiny_model, folder, "other base", rl.RlRecipe(), inputs))
