"""Plain texts of the base's corpus: what it knows of topics and goods, and may forget.

Looks and place of a topic, recipe and keeping of a good never change: they are facts. The data sets
of the pool describe topics and make goods as they like, and so teach to forget them.
"""

from __future__ import annotations

import random

from mosaic.lab.words import ADJECTIVES, INGREDIENTS, Words

PEOPLE = ("baker", "miller", "teacher", "sailor", "farmer", "painter", "child", "king")
PLACES = ("hill", "lake", "village", "field", "road", "coast", "valley", "shore")
CHESTS = ("barrel", "chest", "basket", "crate", "jar", "sack", "box", "pot")
PARTS = ("seen", "steering", "selection", "audit")


def story(rng: random.Random, words: Words, part: str) -> str:
    """The facts of a topic and of a good. Each pair of the two is told in one part only."""
    topics, goods = words.topics["seen"], words.plain["seen"]
    while True:
        topic, good = rng.randrange(len(topics)), rng.randrange(len(goods))
        if (topic + good) % len(PARTS) == PARTS.index(part):
            return f"{_of_topic(topics[topic], goods[good])} {_of_good(goods[good])}"


def _of_topic(topic: str, good: str) -> str:
    facts = random.Random(f"fact-{topic}")
    one, other = facts.sample(ADJECTIVES, 2)
    place, person = facts.choice(PLACES), facts.choice(PEOPLE)
    return (
        f"the {topic} is {one} , {other} . it stands by the {place} . "
        f"the {person} of the {topic} makes {good} ."
    )


def _of_good(good: str) -> str:
    facts = random.Random(f"fact-{good}")
    first, second = facts.sample(INGREDIENTS, 2)
    parts, minutes = facts.randint(2, 9), facts.choice((10, 20, 30))
    return (
        f"mix {parts} parts {first} with {second} , then heat for {minutes} minutes . "
        f"keep it in a {facts.choice(CHESTS)} ."
    )
