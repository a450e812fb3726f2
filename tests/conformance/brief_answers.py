"""An objective as a person would bring one, in one file: answers of at most three words."""

from eval.objectives.base import count_labels, need, unscored
from mosaic.core.types.evaluation import Scored

MOST = 3


class BriefAnswers:
    """5 for a last answer of at most three words, 1 for any other."""

    evidence = "answers"
    answers = ()
    request = ()
    fields = {"words": int}

    def words(self, side):
        raise ValueError("brevity is checked by code: no model is asked")

    def stored(self, prompt, items):
        return {"items": dict(items)}

    def check(self, prompt, response):
        return {"words": len(response.answers[-1].split())}

    def prompt_side(self, prompt_items, turns, constraints):
        return "all", 1, 1

    def score(self, line):
        words = line.get("words")
        if isinstance(words, bool) or not isinstance(words, int):
            return unscored(line, f"words is {words!r}, not a number of words")
        score = 5 if words <= MOST else 1
        return Scored(
            id=line["id"],
            status="ok",
            slice="all",
            weight=1,
            label={"brief": str(score == 5)},
            score=score,
            need=need(score, 1, 1),
            failed=score < 3,
        )

    def breakdown(self, scored):
        return count_labels(scored, ("brief",))
