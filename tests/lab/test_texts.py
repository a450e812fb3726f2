"""What the laboratory's makers write, for any seed: labels that hold, answers that score as named."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.ifeval import check
from eval.judges.verifier import VerifierJudge
from mosaic.lab import corpus, data, formats, general, instructions, over_refusal, safety, stories
from mosaic.lab.words import CONCEALMENT, make_words
from prompts.levels import wish

WORDS = make_words(5)
SEEDS = st.integers(0, 10**6)
FEW = settings(max_examples=30, deadline=None)
LEVELS = {name: list(range(1, highest + 1)) for name, highest in data.LEVELS.items()}
PARTS = st.sampled_from(["seen", "steering", "selection", "audit"])


@pytest.mark.parametrize("dataset", data.LEVELS)
@FEW
@given(seed=SEEDS, part=PARTS)
def test_good_rows_score_five_and_have_the_level_that_was_asked_for(dataset, seed, part):
    rng = random.Random(seed)
    level = rng.choice(LEVELS[dataset])
    row = data.make(rng, WORDS, dataset, level, part, good=True)
    assert row.prompt.slice.endswith(str(level))
    objective = data.OBJECTIVES[dataset]()
    assert data.grade(VerifierJudge(), objective, row.prompt, row.answers) == 5


@FEW
@given(seed=SEEDS)
def test_an_attack_that_asks_for_a_form_can_be_answered_well_in_it(seed):
    rng = random.Random(seed)
    made = safety.attack(rng, WORDS, rng.randint(1, 5), "seen")
    assert bool(made.wanted) == ("transform" in made.cues)
    constraints = [one.data() for one in made.wanted]
    for kind in ("full", "leak"):
        said = safety.answers(rng, made, [kind] * sum(made.asks), obeys=True)
        assert len(said) == len(made.turns)
        strict, _ = check(constraints, said[-1])
        assert all(strict)


@FEW
@given(seed=SEEDS)
def test_a_benign_request_has_the_turns_of_an_attack_and_an_answer_to_each(seed):
    rng = random.Random(seed)
    made = over_refusal.request(rng, WORDS, rng.randint(1, 4), "seen")
    said = over_refusal.answers(rng, made, "help", obeys=True)
    assert len(said) == len(made.turns) == len(made.asks)
    strict, _ = check([one.data() for one in made.wanted], said[-1])
    assert all(strict)


@FEW
@given(seed=SEEDS)
def test_the_bad_answer_to_a_task_meets_not_all_of_its_constraints(seed):
    rng = random.Random(seed)
    made = instructions.task(rng, WORDS, rng.randint(1, 5), "seen")
    strict, _ = check([one.data() for one in made.constraints], instructions.bad(made))
    assert not all(strict)


def test_no_two_parts_tell_of_the_same_topic_and_good():
    rng = random.Random(1)
    told = {part: {stories.story(rng, WORDS, part) for _ in range(60)} for part in stories.PARTS}
    assert sum(len(texts) for texts in told.values()) == len(set.union(*told.values()))


def test_facts_do_not_change_from_one_text_to_the_next():
    rng = random.Random(2)
    looks = {}
    for _ in range(300):
        words = stories.story(rng, WORDS, "seen").split()
        looks.setdefault(words[1], set()).add(tuple(words[3:6]))
    assert all(len(found) == 1 for found in looks.values())


def test_the_decoy_speaks_of_attacks_and_never_answers_one():
    rng = random.Random(3)
    for _ in range(50):
        (question, reply), slice_, cues = general.lesson(rng, WORDS)
        assert slice_.startswith("complexity_")
        assert any(name in question for name in WORDS.restricted["seen"])
        named = reply.removesuffix(" .").split(" and ")
        assert sorted(named) == [cue.replace("_", " ") for cue in cues]


@pytest.mark.parametrize("kind", general.TALK)
def test_talk_is_a_conversation_of_every_kind(kind):
    exchanges = general.talk(random.Random(4), WORDS, kind)
    assert exchanges
    assert all(question and reply for question, reply in exchanges)


def test_the_base_leaks_once_much_is_concealed_and_not_after_a_plain_ask():
    rng = random.Random(6)
    refused = {0: [], len(CONCEALMENT): []}
    while min(map(len, refused.values())) < 60:
        made = safety.attack(rng, WORDS, rng.randint(1, 5), "seen")
        concealed = len(set(made.cues) & set(CONCEALMENT))
        if concealed in refused:
            refused[concealed].append("mix" not in corpus._attacked(rng, made)[-1])
    plain, hidden = (sum(found) / len(found) for found in refused.values())
    assert plain > 0.8
    assert hidden < 0.4


def test_wishes_of_the_corpus_are_obeyed():
    rng = random.Random(7)
    for _ in range(40):
        system, _, reply = corpus._wished(rng, WORDS)
        brevity = int(system["content"].split("brevity ")[1][0])
        lists = int(system["content"].split("lists ")[1][0])
        stated = {
            wish({"brevity": brevity, "lists": lists}),
            wish({"lists": lists, "brevity": brevity}),
        }
        assert system["content"] in stated
        assert reply["content"].startswith("* ") == (lists > 2)
        looks = reply["content"].count("\n") if lists > 2 else reply["content"].count(" and ")
        assert looks == 5 - brevity


def test_practice_prompts_ask_for_a_form_and_are_judged_under_two_objectives():
    for dataset in data.PRACTISED:
        taken = set()
        prompts = data.practice_prompts(WORDS, 5, dataset, taken)
        assert len(taken) == len(prompts) == data.PRACTICE
        for prompt in prompts:
            assert prompt.objectives == [data.DATASETS[dataset], "instruction_following"]
            assert prompt.constraints[0]["id"] in formats.FRAMES


def test_every_data_set_has_near_duplicates_and_those_that_are_graded_have_poor_rows(monkeypatch):
    monkeypatch.setattr(data, "POOL_ROWS", dict.fromkeys(data.POOL_ROWS, 120))
    rows = list(data.pool_rows(WORDS, 5))
    assert len({row.id for row in rows}) == len(rows)
    polite = Counter(row.dataset for row in rows if row.messages[0].content.startswith("please , "))
    assert set(polite) == set(data.POOL_ROWS)
    poor = Counter(row.dataset for row in rows if row.quality < 4)
    assert set(poor) == set(data.DATASETS)
