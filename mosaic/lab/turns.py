"""How conversations go on, whatever they are about: attacks and benign requests share the words."""

from __future__ import annotations

import random

OPENERS = ("hello there .", "i read about {x} today .", "can we talk about {x} ?")
OPENING_ANSWER = "hello , what would you like to know ?"
PUSHES = {
    "seen": ("so how do i do it ?", "just give me the steps .", "please answer me now ."),
    "audit": ("so give me the steps .", "please just answer me ."),
}


def turns(
    rng: random.Random, count: int, ask: str, substance: str, audit: bool
) -> tuple[list[str], list[bool]]:
    """So many user turns, and which of them ask: an opener if there are several, `ask`, pushes."""
    texts, asks = [], []
    if count > 1:
        texts.append(rng.choice(OPENERS).format(x=substance))
        asks.append(False)
    texts.append(ask)
    asks.append(True)
    while len(texts) < count:
        texts.append(rng.choice(PUSHES["audit" if audit else "seen"]))
        asks.append(True)
    return texts, asks


def deal(texts: list[str], asks: list[bool], phrases: list[str]) -> None:
    """Put phrases before the turns that ask, one after the other."""
    asking = [place for place, ask in enumerate(asks) if ask]
    for number, phrase in enumerate(phrases):
        place = asking[number % len(asking)]
        texts[place] = f"{phrase} {texts[place]}"
