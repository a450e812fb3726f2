"""Cases of bases and chat templates, over the inputs of `../shared/cases/data` (docs/base_models.md).

Each is tried with the laboratory's model, whose files the case replaces.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from benchmarks.case import Case
from benchmarks.figures import CannotRun
from benchmarks.template_shapes import make_tokenizer, shapes
from benchmarks.templates import chats_of, wrong_labels
from eval.generators.base import TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.rendering.pins import pin
from eval.rendering.render import Chat, texts_of
from eval.rendering.tokenizer import load_tokenizer
from mosaic.app.base_check import check_base
from mosaic.app.config_file import BUNDLED, load_config
from mosaic.app.validation import validate
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt
from training.data.pool import build_pool
from training.models.chat_template import IGNORED, tokenise

DATA = Path("../shared/cases/data")
END = "<|end|>"
CHAT: Chat = [
    {"role": "user", "content": "how do i store the bread ?"},
    {"role": "assistant", "content": "keep it in a dry cabinet ."},
    {"role": "user", "content": "for how long ?"},
    {"role": "assistant", "content": "three days ."},
]


def given(number: str) -> Path:
    """The folder of a case's inputs. Raises CannotRun if this machine has none."""
    folder = DATA / number
    if not folder.is_dir():
        raise CannotRun(f"{folder} is not there")
    return folder


def base_with(work: Path, *files: Path) -> Path:
    """A copy of the laboratory's model, with files of a case put in."""
    base = work / "base"
    if not base.exists():
        shutil.copytree(BUNDLED / "model", base)
    for file in files:
        name = "chat_template.jinja" if file.suffix == ".jinja" else file.name
        shutil.copyfile(file, base / name)
    return base


def misread(base: Path, chat: Chat = CHAT) -> str | None:
    """What is learnt beside the answers and their ends; None if nothing is, or the base is refused."""
    try:
        check_base(base)
        tokenizer = load_tokenizer(base)
        _, (labels,) = tokenise(tokenizer, [chat])
    except UsageError:
        return None
    learnt = tokenizer.decode([label for label in labels if label != IGNORED])
    wanted = "".join(m["content"] + END for m in chat if m["role"] == "assistant")
    if learnt.replace(" ", "") != wanted.replace(" ", ""):
        return f"{learnt!r} is learnt"
    return None


def labels_of_template(number: str, name: str) -> Callable[[Path], str | None]:
    """A case of a template whose markers are wrong: exact labels, or refused."""

    def run(work: Path) -> str | None:
        return misread(base_with(work, given(number) / name))

    return run


def another_end(work: Path) -> str | None:
    """The folder names another end than its turns have: it is added, said, and stops answers."""
    folder = given("06")
    base = base_with(work, folder / "tokenizer_config.json", folder / "generation_config.json")
    said = " ".join(finding.result for finding in check_base(base))
    if END not in said or "added to the stop" not in said:
        return f"nothing said of {END}: {said}"
    prompts = []
    for number, text in enumerate(("how do i store the bread ?", "hello there .")):
        prompts.append(Prompt(id=f"p{number}", slice="all", weight=1, turns=[text]))
    generator = TransformersGenerator(base, TransformersGeneratorConfig(max_new_tokens=48))
    cut = [a for r in generator.generate(prompts, None) for a in r.finish_reasons if a != "stop"]
    return f"{len(cut)} of {len(prompts)} answers run on" if cut else None


def several_templates(work: Path) -> str | None:
    """Of several named templates the one called default is used."""
    folder = given("08")
    base = base_with(work, folder / "tokenizer_config.json")
    (base / "chat_template.jinja").unlink()
    return misread(base)


def several_template_files(work: Path) -> str | None:
    """The same where the others lie in a folder of their own."""
    base = base_with(work)
    name = "additional_chat_templates"
    shutil.copytree(given("08") / name, base / name)
    return misread(base)


def system_prompt(work: Path) -> str | None:
    """A template that refuses system messages names every suite prompt that has one."""
    folder = given("10")
    base = base_with(work, folder / "chat_template.jinja")
    named = [f"base_model={base}", f"objectives.safety.suite={folder / 'suite-safety'}"]
    try:
        validate(load_config("lab", named), full=False, say=lambda text: None)
    except UsageError as error:
        text = str(error)
        return None if "safety/audit" in text and "System role" in text else text
    return "accepted"


def clock(work: Path) -> str | None:
    """A template that writes the day writes the same one for ever."""
    base = base_with(work, given("11") / "weekday.jinja")
    said = " ".join(finding.result for finding in check_base(base))
    if "2024-07-26" not in said:
        return f"the day is not said: {said}"
    (text,) = texts_of(load_tokenizer(base), [CHAT])
    today = datetime.now().strftime("%A %d %B %Y")
    if today in text or "Friday 26 July 2024" not in text:
        return f"rendered as {text[:60]!r}"
    return None


def refused_rows(work: Path) -> str | None:
    """All rows that a template refuses are named at once."""
    base = base_with(work, given("10") / "chat_template.jinja")
    rows = given("16") / "sysrows.jsonl"
    try:
        build_pool([rows], work / "pool", model=base, max_length=512)
    except UsageError as error:
        named = str(error).count("sysrows.jsonl:")
        return None if named == 6 else f"{named} of 6 rows named"
    return "accepted"


def published(work: Path) -> str | None:
    """Published templates, which have no generation markers, are trained as they are."""
    for shape in shapes():
        tokenizer = make_tokenizer(shape)
        pin(tokenizer)
        for chat in chats_of(shape):
            wrong = wrong_labels(tokenizer, shape, chat)
            if wrong:
                return f"{shape.name}: {wrong}"
    return None


CASES: tuple[Case, ...] = (
    Case("05", "markers round the role header", labels_of_template("05", "header-inside.jinja")),
    Case("06", "another end of turn is named", another_end),
    Case("07", "markers round the last turn", labels_of_template("07", "last_only.jinja")),
    Case("07", "markers in a comment", labels_of_template("07", "commented.jinja")),
    Case("08", "several named templates", several_templates),
    Case("08", "several template files", several_template_files),
    Case("10", "a template that refuses system messages", system_prompt),
    Case("11", "a template that writes the day", clock),
    Case("16", "rows that break alternation", refused_rows),
    Case("TRL", "published templates", published),
)
