import pytest

from eval.agreement import compare, kappa
from mosaic.core.types.evaluation import Judgment


def test_kappa_of_a_worked_table():
    """20 both yes, 5 yes-no, 10 no-yes, 15 both no: observed 0.7, by chance 0.5, kappa 0.4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert kappa(first, second) == pytest.approx(0.4)


def test_kappa_of_a_second_worked_table():
    """45, 15, 25, 15: observed 0.6, by chance 0.54, kappa 0.1304."""
    first = [1] * 60 + [0] * 40
    second = [1] * 45 + [0] * 15 + [1] * 25 + [0] * 15
    assert kappa(first, second) == pytest.approx(0.06 / 0.46)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([1, 0], [1, 0], 1),
        ([1, 0], [0, 1], -1),
        ([1, 1], [1, 1], None),
        ([], [], None),
        ([1, 1], [0, 0], 0),
    ],
)
def test_kappa_at_the_edges(first, second, value):
    assert kappa(first, second) == value


def judgment(value, status="ok"):
    return Judgment(
        id="x", status=status, items={"items": {"help": {"structured": value}}}, judge="j"
    )


def test_only_conversations_that_both_judged_are_compared():
    first = [judgment(1), judgment(0), judgment(1), judgment(0, "failed")]
    second = [judgment(1), judgment(0), judgment(0), judgment(1)]
    (row,) = compare(first, second)
    assert row == {
        "item": "help.structured", "n": 3, "agreement": 0.6667, "kappa": 0.4, "prevalence": [0.6667, 0.3333],
    }  # fmt: skip
