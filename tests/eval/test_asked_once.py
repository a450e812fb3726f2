"""From questions to verdicts: known ones are not asked again, new ones are kept, whatever happens."""

import pytest

from eval.chat.client import ChatUnavailable
from eval.judges import verdicts as module
from eval.judges.items import items_of
from eval.judges.verdicts import Question, VerdictEntry, answer, unique
from eval.objectives.safety import Safety
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import Verdict

OK = Verdict(status="ok", charged=10)


def questions(count):
    items = items_of(Safety(), "answers")
    return [
        Question(items, (Message(role="user", content=f"question {i}"),), "judge")
        for i in range(count)
    ]


class Store:
    def __init__(self, *known):
        self.verdicts = {q.key: OK for q in known}
        self.sources = []

    def get(self, question):
        return self.verdicts.get(question.key)

    def keep(self, entries, source):
        self.verdicts |= {q.key: verdict for q, verdict, *_ in entries}
        self.sources += [source] * len(entries)


class Judge:
    """Answers one question at a time; goes down after `answers` of them."""

    def __init__(self, answers=1000):
        self.answers = answers
        self.asked = []

    def ask_all(self, batch, stopping):
        for question in batch:
            if len(self.asked) == self.answers:
                raise ChatUnavailable("down", [])
            self.asked.append(question)
            yield [VerdictEntry(question, OK, 0.1)]
            if stopping():
                return


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "FLUSH", 2)


def test_a_verdict_comes_from_the_first_store_that_knows_it_and_earlier_ones_get_a_copy():
    first, second, third = questions(3)
    journal, cache, judge = Store(first), Store(first, second), Judge()
    answers = answer([first, second, third, third], judge, [journal, cache])
    assert judge.asked == [third]
    assert journal.sources == ["cache", "model"]
    assert cache.sources == ["model"]
    assert set(answers.verdicts) == set(journal.verdicts) == set(cache.verdicts)
    assert (answers.asked, answers.charged) == (1, 10)


def test_each_batch_is_announced_before_it_is_asked_and_may_be_refused():
    asked, judge, store = questions(10), Judge(), Store()
    digests, missing, steps = [], [], []

    def before(digest):
        digests.append(digest)
        if len(digests) == 3:
            raise UserWarning

    with pytest.raises(UserWarning):
        answer(
            asked,
            judge,
            [store],
            announce=missing.append,
            before_batch=before,
            progress=lambda done, total: steps.append((done, total)),
        )
    assert missing == [10]
    assert judge.asked == asked[:8]
    assert len(set(digests)) == 3
    assert steps == [(2, 10), (4, 10), (6, 10), (8, 10)]


def test_what_was_made_before_an_outage_is_kept():
    asked, judge, store = questions(10), Judge(answers=7), Store()
    with pytest.raises(ChatUnavailable):
        answer(asked, judge, [store])
    assert len(store.verdicts) == 7
    answer(asked, Judge(), [store])
    assert len(store.verdicts) == len(store.sources) == 10


def test_after_a_stop_the_rest_has_no_verdict():
    asked, judge, store = questions(10), Judge(), Store()
    answers = answer(asked, judge, [store], stopping=lambda: len(judge.asked) >= 3)
    assert len(answers.verdicts) == len(store.verdicts) == 3


def test_a_question_counts_once():
    first, second = questions(2)
    assert unique([first, second, first]) == [first, second]
