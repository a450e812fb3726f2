"""The shipped laboratory is what its manifest says, and what a laboratory must be."""

import hashlib
import json
from collections import Counter

import pytest

from eval.judges.verifier import VerifierJudge
from eval.known_answers import check_references
from eval.practice import load_practice
from eval.suite import load_suite
from mosaic.app.config_file import load_config
from mosaic.app.objectives import published_objective
from mosaic.core.types.base import canonical_json
from mosaic.core.types.evaluation import ROLES
from mosaic.lab import corpus, data, pretrain
from mosaic.lab.build import DATA, MANIFEST, build, pool_turns, recipe_digest
from mosaic.lab.words import make_words
from training.data.pool import Pool

SHIPPED = json.loads((DATA / MANIFEST).read_text())
OBJECTIVES = ("safety", "over_refusal", "instruction_following")


def suite(objective, role):
    return load_suite(DATA / "suites" / objective, published_objective(objective), role)


def practice(objective):
    known = {name: published_objective(name) for name in OBJECTIVES}
    return load_practice(DATA / "suites" / objective, known[objective], known).suite


def test_the_manifest_names_what_is_shipped():
    weights = (DATA / "model" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == SHIPPED["weights_digest"]
    pool = Pool.open(DATA / "pool")
    assert pool.digest == SHIPPED["pool_digest"]
    pool.verify()
    assert recipe_digest() == SHIPPED["recipe_digest"], (
        "the recipe changed: rebuild the laboratory, and say so in the diary"
    )
    assert sum(p.stat().st_size for p in (DATA / "model").iterdir()) < 6_000_000


def test_the_recipe_gives_the_shipped_texts():
    words = make_words(SHIPPED["seed"])
    for dataset, objective in data.DATASETS.items():
        taken = pool_turns(words, SHIPPED["seed"], dataset)
        for role in ROLES:
            made = data.suite_prompts(words, SHIPPED["seed"], dataset, role, taken)
            assert made == suite(objective, role).prompts
        if dataset in data.PRACTISED:
            made = data.practice_prompts(words, SHIPPED["seed"], dataset, taken)
            assert made == practice(objective).prompts


def test_pre_training_twice_gives_the_same_weights():
    words = make_words(3)
    chats = list(corpus.corpus(words, 3, 400))
    tokenizer = pretrain.make_tokenizer(pretrain.contents(chats))
    one, two = (pretrain.pretrain(tokenizer, chats, 3, steps=8).state_dict() for _ in range(2))
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_suites_are_disjoint_and_their_references_hold(objective):
    seen = set()
    for role in ROLES:
        made = suite(objective, role)
        assert min(Counter(p.slice for p in made.prompts).values()) >= 30
        check_references(made, published_objective(objective), VerifierJudge())
        turns = {tuple(p.turns) for p in made.prompts}
        assert not turns & seen
        seen |= turns
    pool = Pool.open(DATA / "pool")
    indices = __import__("numpy").arange(pool.manifest["rows"])
    for messages in pool.rows(indices)["messages"].to_pylist():
        assert tuple(m["content"] for m in messages if m["role"] == "user") not in seen


def test_audit_names_are_nowhere_else():
    words = make_words(SHIPPED["seed"])
    rest = {name for part in ("seen", "steering", "selection") for name in words.restricted[part]}
    assert not rest & set(words.restricted["audit"])
    text = canonical_json(
        [p.turns for r in ("steering", "selection") for p in suite("safety", r).prompts]
    )
    assert not any(name in text.replace(".", " ").split() for name in words.restricted["audit"])


def test_pools_are_skewed_uneven_and_large_enough():
    stats = Pool.open(DATA / "pool").stats()
    assert stats["tokens"] >= 300_000
    poor = total = 0
    assert set(stats["datasets"]) == set(data.POOL_ROWS)
    assert len(data.POOL_ROWS) == 5
    for dataset in map(stats["datasets"].__getitem__, data.DATASETS):
        sizes = [b["rows"] for b in dataset["buckets"].values()]
        assert max(sizes) > 5 * min(sizes)
        for bucket in dataset["buckets"].values():
            poor += sum(cell["rows"] for q, cell in bucket["by_quality"].items() if int(q) < 4)
            total += bucket["rows"]
    assert poor / total >= 0.3


def test_a_lab_with_another_seed_is_a_whole_laboratory(tmp_path):
    manifest = build(tmp_path / "lab", 9, steps=4, chats=300)
    assert manifest["data_digest"] != SHIPPED["data_digest"]
    config = load_config(str(tmp_path / "lab" / "config.yaml"))
    assert config.pool == str(tmp_path / "lab" / "pool")
    assert config.tokens_per_round == load_config("lab").tokens_per_round
