"""An objective in a person's own Python file: found, described, imported, and told apart."""

import hashlib
import py_compile
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from eval.objectives.base import by_code, labels_of
from eval.objectives.config import PythonConfig
from eval.objectives.custom import describe, open_python
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt, Response

SOURCE = '''
from __future__ import annotations

from dataclasses import dataclass

from eval.objectives.base import Unchecked, count_labels, need, unscored
from mosaic.core.types.evaluation import Scored


@dataclass
class Words:
    most: int = 3


class Brief:
    """5 for an answer of at most three words."""

    evidence = "answers"
    answers = ()
    request = ()
    fields = {"words": int}

    def words(self, side):
        raise ValueError("checked by code")

    def stored(self, prompt, items):
        return {"items": dict(items)}

    def check(self, prompt, response):
        return {"words": len(response.answers[-1].split())}

    def prompt_side(self, prompt_items, turns, constraints):
        return "all", 1, 1

    def score(self, line):
        if not isinstance(line.get("words"), int):
            return unscored(line, "words is missing")
        score = 5 if line["words"] <= Words().most else 1
        return Scored(id=line["id"], status="ok", slice="all", weight=1, label={"words": line["words"]},
                      score=score, need=need(score, 1, 1), failed=score < 3)

    def breakdown(self, scored):
        return count_labels(scored, ("words",))
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_objective.py").write_text(SOURCE)
    return tmp_path


def config(spec="my_objective:Brief"):
    return PythonConfig.model_validate({"class": spec})


def test_the_class_is_the_objective_of_that_name(folder):
    objective = open_python("mine", config(), folder)
    assert objective.name == "mine"
    assert by_code(objective)
    prompt = Prompt(id="p", turns=["?"], slice="all", weight=1)
    assert labels_of(objective, prompt) == ("all", 1, 1)
    response = Response(id="p", answers=["so it is"], finish_reasons=["stop"], n_tokens=3)
    assert objective.score({"id": "p", **objective.check(prompt, response)}).score == 5


@pytest.mark.parametrize("spec", ["code.mine:Brief", "code/mine.py:Brief", "./code/mine.py:Brief"])
def test_dots_and_paths_name_a_file_below_the_folder(tmp_path, spec):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(SOURCE)
    assert open_python("mine", config(spec), tmp_path).name == "mine"
    absolute = f"{tmp_path}/code/mine.py:Brief"
    assert open_python("mine", config(absolute), tmp_path / "elsewhere").name == "mine"


def test_what_would_be_imported_is_told_without_importing_it(folder):
    file = folder / "my_objective.py"
    file.write_text("raise SystemExit('it ran')")
    file_found, digest = describe(config(), folder)
    assert file_found == file.resolve()
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="the import fails: SystemExit: it ran"):
        open_python("mine", config(), folder)


def test_only_what_was_described_is_imported(folder):
    _, digest = describe(config(), folder)
    assert open_python("mine", config(), folder, digest).name == "mine"
    with (folder / "my_objective.py").open("a") as file:
        file.write("\n# changed\n")
    with pytest.raises(UsageError, match="changed since it was looked at"):
        open_python("mine", config(), folder, digest)


def test_compiled_code_beside_the_source_is_never_run(folder):
    source = folder / "my_objective.py"
    other = folder / "other.py"
    other.write_text("raise AssertionError('compiled code ran')")
    cache = folder / "__pycache__"
    cache.mkdir()
    compiled = cache / f"my_objective.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(
        str(other),
        cfile=str(compiled),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    before = sorted(cache.iterdir())
    assert open_python("mine", config(), folder).name == "mine"
    assert sorted(cache.iterdir()) == before
    assert source.read_text() == SOURCE


def test_the_rules_follow_from_the_files_bytes_and_the_classs_own_rules(folder):
    rules = [open_python("mine", config(), folder).rules]
    assert open_python("mine", config(), folder).rules == rules[0]
    assert open_python("other", config(), folder).rules == rules[0]
    source = folder / "my_objective.py"
    source.write_text(SOURCE + "\n# a comment\n")
    rules.append(open_python("mine", config(), folder).rules)
    for own in ("1", "2"):
        source.write_text(SOURCE + f"\nimport os\nBrief.rules = os.environ.get('NONE', '{own}')\n")
        rules.append(open_python("mine", config(), folder).rules)
    assert len(set(rules)) == len(rules)


def test_the_classs_own_rules_count_beside_the_file(folder, monkeypatch):
    source = folder / "my_objective.py"
    source.write_text(
        SOURCE + "\n    rules = property(lambda self: __import__('os').environ['R'])\n"
    )
    rules = []
    for value in ("1", "2"):
        monkeypatch.setenv("R", value)
        rules.append(open_python("mine", config(), folder).rules)
    assert rules[0] != rules[1]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def check(", "def chek(", "it has no check; an objective has"),
        ('evidence = "answers"', 'evidence = "answer"', "evidence is 'answer'"),
        ("answers = ()", "answers = []", "tuple of Channel"),
        ("request = ()", "request = ('x',)", "tuple of Channel"),
        ('fields = {"words": int}', "fields = ['words']", "maps names"),
        ("def score(self, line):", "def score(self):", "score is not a method of 1 argument"),
        ("class Brief:", "class Short:", "no class of that name"),
        ("class Brief:", "def Brief():\n    pass\n\nclass Other:", "no class of that name"),
        ('evidence = "answers"', 'evidence = "answers"\n    __init__ = None', "fails: TypeError"),
        ("@dataclass\n", "import my_helper\n", "one file"),
        ("class Brief:", "class Brief", "SyntaxError"),
    ],
)
def test_what_is_not_an_objective_is_refused_with_what_it_lacks(folder, old, new, reason):
    source = folder / "my_objective.py"
    assert old in SOURCE
    source.write_text(SOURCE.replace(old, new, 1))
    with pytest.raises(UsageError, match=rf"my_objective\.py.*{reason}"):
        open_python("mine", config(), folder)


def test_all_missing_members_are_named_at_once(folder):
    (folder / "my_objective.py").write_text("class Brief:\n    evidence = 'answers'\n")
    with pytest.raises(
        UsageError, match="it has no answers, request, fields, words, stored, check"
    ):
        open_python("mine", config(), folder)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for ask in (describe, lambda c, f: open_python("mine", c, f)):
        with pytest.raises(
            UsageError, match=r"my_objective\.py: No such file.*folder of the config"
        ):
            ask(config(), tmp_path)


@pytest.mark.parametrize(
    "spec", ["my_objective", "my_objective:", ":Brief", "a:b:c", "a:1b", "a\0:b"]
)
def test_a_spec_that_does_not_name_a_class_is_refused(spec):
    with pytest.raises(ValidationError, match="module:Class"):
        config(spec)


def test_a_saved_config_is_read_again():
    class Outer(BaseModel):
        mine: PythonConfig

    saved = Outer(mine=config()).model_dump(mode="json")
    assert saved == {"mine": {"kind": "python", "class": "my_objective:Brief"}}
    assert Outer.model_validate(saved).mine == config()


def test_dots_of_a_path_are_no_folders():
    def named(spec):
        return PythonConfig.model_validate({"class": spec}).file(Path("/a/b"))

    assert named("../code/mine:Mine") == Path("/a/code/mine.py")
    assert named("code/mine:Mine") == named("code.mine:Mine") == Path("/a/b/code/mine.py")
    assert named("../code/mine.py:Mine") == Path("/a/code/mine.py")


def test_a_fault_of_the_class_is_told_with_its_line(tmp_path):
    brief = Path(__file__).parents[1] / "conformance" / "brief_answers.py"
    faults = (
        "\n\nclass Faulty(BriefAnswers):\n"
        "    def score(self, line):\n        return None if line else 1 / 0\n"
        "    def breakdown(self, scored):\n        raise KeyError('x')\n"
    )
    (tmp_path / "faulty.py").write_text(brief.read_text() + faults)
    config = PythonConfig.model_validate({"class": "faulty:Faulty"})
    mine = open_python("mine", config, tmp_path)
    with pytest.raises(
        UsageError, match=r"objectives\.mine: score fails at .*faulty\.py:\d+: Zero"
    ):
        mine.score({})
    with pytest.raises(UsageError, match="score gives None, not a Scored"):
        mine.score({"id": "a"})
    with pytest.raises(UsageError, match=r"breakdown fails at .*KeyError: 'x'"):
        mine.breakdown([])
