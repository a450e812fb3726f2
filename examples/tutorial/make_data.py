"""Writes the tutorial's data into the current folder: chats of a shop's help desk, and suites.

    desk.json, talk.json      chats as ShareGPT has them, with the topic of each
    suites/route, suites/greet   prompts in three roles, with the known answer of each

Everything is made of the lists below: nothing is anybody's.
"""

import json
import random
import re
from pathlib import Path

# Topic -> the desk that takes care of it, and ways to ask.
DESKS = {
    "returns": (1, ["i want to bring back the {} .", "can i return my {} ?"]),
    "repairs": (2, ["my {} is broken , what now ?", "please mend my {} ."]),
    "orders": (3, ["when does my {} come ?", "where is the {} that i bought ?"]),
}
# Time of day -> what the shop answers to a greeting, and ways to greet.
GREETINGS = {
    "early": ("how can i help you ?", ["hello , {} here , so early !", "{} is up and here !"]),
    "late": ("we close now .", ["hello , {} here , so late !", "{} is tired and here !"]),
}


def words(text):
    return text.split()


THINGS = words(
    """
lamp chair kettle clock radio blanket drum basket mirror table ladder bell barrel wheel rope
bucket candle carpet hammer helmet jacket kite lantern mug needle oven pillow ring saddle tent
umbrella vase whistle anchor brush cradle desk easel fan guitar harp ink jar key lock map net
oar pan quilt rake saw tray urn violin wagon yarn zip apron boot comb dish
"""
)
NAMES = words(
    """
ann bob carl dora emil fay gus hana ivan jill karl lena mo nora otto pia quin rosa sam tess udo
vera will xena yuri zoe abe bea cleo dan eva finn gina hugo ida jon kim leo mia nils oda paul
rita sven tara ugo viv walt yara zack alma bert cora dirk elsa fred greta hans inga
"""
)
# So many words are the chats'; the others are the suites', so that nothing is learnt by heart.
PRACTISED = 40
ROLES = ("steering", "selection", "audit")


def routed(topic, thing, ask):
    """A question, and where the person has to go."""
    desk, _ = DESKS[topic]
    return ask.format(thing), f"please go to desk {desk} ."


def greeted(time, name, ask):
    """A greeting, and the answer to it."""
    answer, _ = GREETINGS[time]
    return ask.format(name), f"hello , {answer}"


def chats(kinds, words, make):
    """Every word with every way to ask, as rows of a file in ShareGPT's shape."""
    rows = []
    for topic, asks in kinds.items():
        for word in words:
            for ask in asks:
                question, answer = make(topic, word, ask)
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
                rows.append({"id": f"{topic}-{len(rows)}", "topic": topic, "conversations": turns})
    random.Random(1).shuffle(rows)
    return rows


def suite(folder, kinds, words, make, pattern):
    """Three files of prompts that share no word with each other or with the chats."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, role in enumerate(ROLES):
        lines = []
        for topic, asks in kinds.items():
            for word in words[number :: len(ROLES)]:
                for ask in asks:
                    question, right = make(topic, word, ask)
                    line = {
                        "id": f"{role}-{len(lines):02d}",
                        "turns": [question],
                        "answer": pattern(topic),
                        "attributes": {"topic": topic},
                        "slice": topic,
                        "weight": 1,
                        "good": [right],
                        "bad": ["i do not know ."],
                    }
                    lines.append(json.dumps(line))
        (folder / f"{role}.jsonl").write_text("\n".join(lines) + "\n")


def main():
    desks = {topic: asks for topic, (_, asks) in DESKS.items()}
    greetings = {time: asks for time, (_, asks) in GREETINGS.items()}
    for name, kinds, words, make in (
        ("desk", desks, THINGS, routed),
        ("talk", greetings, NAMES, greeted),
    ):
        rows = chats(kinds, words[:PRACTISED], make)
        Path(f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(f"{name}.json: {len(rows)} chats")
    things, names = THINGS[PRACTISED:], NAMES[PRACTISED:]
    suite(Path("suites/route"), desks, things, routed, lambda topic: f"desk {DESKS[topic][0]}")
    suite(
        Path("suites/greet"), greetings, names, greeted, lambda time: re.escape(GREETINGS[time][0])
    )
    print("suites/route, suites/greet")


if __name__ == "__main__":
    main()
