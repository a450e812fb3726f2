"""What the base is pre-trained on: how it behaves before any of the pool has been seen."""

from __future__ import annotations

import random
from collections.abc import Iterator

from mosaic.lab import formats, instructions, over_refusal, safety
from mosaic.lab.pretrain import TEXT, Chat
from mosaic.lab.stories import story
from mosaic.lab.words import ADJECTIVES, CONCEALMENT, CUES, Words
from prompts.levels import HIGHEST, wish

CHATS = 32000
# The shares of the corpus in percent.
KINDS = (("guard", "benign", "tasks", "wish", "story"), (31, 23, 25, 8, 13))
# How often the base refuses: an attack by the number of its cues of concealment, a benign request
# by its boundary level.
REFUSES_ATTACK = (0.82, 0.76, 0.66, 0.5, 0.35)
REFUSES_BENIGN = (0.0, 0.08, 0.35, 0.5)
# How often its answers have the form that was asked for: leaks and help, and refusals.
OBEYS, REFUSAL_OBEYS = 0.7, 0.1
# The constraints that the base follows best.
EASY = (formats.NO_COMMA, formats.QUOTATION, formats.TITLE, formats.POSTSCRIPT)


def corpus(words: Words, seed: int, chats: int = CHATS) -> Iterator[Chat]:
    """The chats and texts that the base is pre-trained on.

    It refuses attacks that conceal little and some benign requests that look like attacks, follows
    constraints loosely, obeys wishes stated in levels where they are harmless, and knows stories.
    """
    rng = random.Random(f"corpus-{seed}")
    for _ in range(chats):
        kind = rng.choices(*KINDS)[0]
        if kind == "guard":
            made = safety.attack(rng, words, rng.randint(1, 5), "seen")
            yield _exchanges(made.turns, _attacked(rng, made))
        elif kind == "benign":
            request = over_refusal.request(
                rng, words, rng.choices((1, 2, 3, 4), (4, 3, 3, 3))[0], "seen"
            )
            yield _exchanges(request.turns, _asked(rng, request))
        elif kind == "tasks":
            task = instructions.task(rng, words, rng.randint(1, 5), "seen")
            reply = instructions.answer(rng, task, _loosely(rng, task))
            yield _exchanges(task.turns, instructions.chat(task, reply))
        elif kind == "wish":
            yield _wished(rng, words)
        else:
            yield [{"role": TEXT, "content": story(rng, words, "seen")}]


def _exchanges(questions: list[str], replies: list[str]) -> Chat:
    chat = []
    for question, reply in zip(questions, replies, strict=True):
        chat.append({"role": "user", "content": question})
        chat.append({"role": "assistant", "content": reply})
    return chat


def _attacked(rng: random.Random, made: safety.Attack) -> list[str]:
    """Each turn is decided by what has been concealed up to it, and a leak ends all refusals."""
    kinds: list[str] = []
    known, refuses = -1, True
    for number, ask in enumerate(made.asks, start=1):
        if not ask:
            continue
        concealed = _concealed(made, number)
        if concealed > known:
            refuses = refuses and rng.random() < REFUSES_ATTACK[concealed]
            known = concealed
        kinds.append("short" if refuses else "leak")
    return safety.answers(rng, made, kinds, rng.random() < (REFUSAL_OBEYS if refuses else OBEYS))


def _concealed(made: safety.Attack, turns: int) -> int:
    """How many cues of concealment the first so many turns hold."""
    said = " ".join(made.turns[:turns])
    count = int(bool(made.wanted) and turns == len(made.turns))
    for family in CONCEALMENT:
        count += any(phrase in said for phrase in CUES.get(family, {}).get("seen", ()))
    return count


def _asked(rng: random.Random, made: over_refusal.Request) -> list[str]:
    level = int(made.slice.removeprefix("boundary_"))
    refuses = rng.random() < REFUSES_BENIGN[level - 1]
    kind = "refuse" if refuses else "help"
    obeys = rng.random() < (REFUSAL_OBEYS if refuses else OBEYS)
    return over_refusal.answers(rng, made, kind, obeys)


def _loosely(rng: random.Random, task: instructions.Task) -> list[str]:
    """The constraints that the base meets: easy ones mostly, others about half the time."""
    alone = len(task.constraints) == 1
    easy, hard = (0.9, 0.6) if alone else (0.8, 0.45)
    met = []
    for kind in task.kinds:
        if rng.random() < (easy if kind in EASY else hard):
            met.append(kind)
    return met


def _wished(rng: random.Random, words: Words) -> Chat:
    """A description under two stated wishes, which are obeyed: how short it is, and how listed."""
    brevity, lists = rng.randint(1, HIGHEST), rng.randint(1, HIGHEST)
    levels = {"brevity": brevity, "lists": lists}
    if rng.random() < 0.5:
        levels = {"lists": lists, "brevity": brevity}
    looks = rng.sample(ADJECTIVES, HIGHEST + 1 - brevity)
    noun = rng.choice(words.topics["seen"])
    # From the middle level on it is a list.
    if lists > HIGHEST // 2:
        reply = "\n".join(f"* it is {look}" for look in looks)
    else:
        reply = f"the {noun} is {' and '.join(looks)} ."
    question = rng.choice(instructions.DESCRIBE["seen"]).format(x=noun)
    return [{"role": "system", "content": wish(levels)}, *_exchanges([question], [reply])]
