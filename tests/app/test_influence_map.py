"""The picture of influence: every bucket by every objective that has an estimate."""

from mosaic.app.views.plot_grids import UNCLEAR
from mosaic.app.views.plots import influence_map
from tests.agent.conftest import influence


def test_every_effect_stands_with_its_error_under_the_objectives_in_their_order():
    drawn = influence_map(influence((0.3, 0.1, -0.2)), ["over_refusal", "retention", "safety"])
    for text in ("a x", "b z", "+0.3 ± 0.02", "-0.2 ± 0.02"):
        assert text in drawn
    assert drawn.index("over refusal") < drawn.index("safety")
    assert "retention" not in drawn


def test_what_is_clear_of_zero_is_coloured_and_the_rest_grey():
    clear, unclear = influence(error=0.02), influence(error=0.9)
    assert UNCLEAR not in influence_map(clear, ["safety"])
    assert influence_map(unclear, ["safety"]).count(UNCLEAR) == len(unclear.buckets)
