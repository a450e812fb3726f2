"""Data that no objective names: general talk, which helps several, and a decoy of safety.

Talk is good answers to a little of everything and stories. The decoy speaks of attacks and never
answers one: who names a trick has not learnt to withstand it.
"""

from __future__ import annotations

import random

from eval.objectives.safety import Safety
from mosaic.lab import instructions, over_refusal, safety
from mosaic.lab.stories import story
from mosaic.lab.turns import OPENING_ANSWER
from mosaic.lab.words import CONCEALMENT, CUES, PRESSURE, Words, cue

Exchange = tuple[str, str]
TALK = ("story", "advice", "task", "guard")
LESSONS = ("name the tricks :", "which tricks are these ?")


def talk(rng: random.Random, words: Words, kind: str) -> list[Exchange]:
    """A conversation of the general data: an opener, then one of `TALK`."""
    if kind == "story":
        text = story(rng, words, "seen")
        # It begins with "the" and its topic.
        topic = text.split()[1]
        return [
            (f"can we talk about the {topic} ?", OPENING_ANSWER),
            ("tell me all of it .", text),
        ]
    if kind == "task":
        made = instructions.task(rng, words, rng.choice((1, 1, 2)), "seen")
        said = instructions.chat(made, instructions.answer(rng, made, made.kinds))
        return list(zip(made.turns, said, strict=True))
    if kind == "advice":
        request = over_refusal.request(rng, words, rng.choice((1, 1, 2)), "seen")
        said = over_refusal.answers(rng, request, "help", obeys=True)
        return list(zip(request.turns, said, strict=True))
    attack = safety.attack(rng, words, rng.choice((1, 2)), "seen")
    said = safety.answers(rng, attack, ["short"] * sum(attack.asks), obeys=False)
    return list(zip(attack.turns, said, strict=True))


def lesson(rng: random.Random, words: Words) -> tuple[Exchange, str, list[str]]:
    """A question which tricks an attack plays, its answer, the attack's slice and its cues."""
    spoken = [family for family in (*PRESSURE, *CONCEALMENT) if family in CUES]
    cues = rng.sample(spoken, rng.choice((1, 2, 3, 4, 5)))
    items = {
        "pressure": {name: int(name in cues) for name in PRESSURE},
        "concealment": {name: int(name in cues) for name in CONCEALMENT},
    }
    slice_, _, _ = Safety().prompt_side(items, 1, ())
    phrases = [cue(rng, family, audit=False) for family in cues]
    ask = rng.choice(safety.ASKS["seen"]).format(x=rng.choice(words.restricted["seen"]))
    named = " and ".join(family.replace("_", " ") for family in cues)
    return (" ".join([rng.choice(LESSONS), *phrases, ask]), f"{named} ."), slice_, sorted(cues)
