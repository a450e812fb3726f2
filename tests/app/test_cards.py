"""The cards of an export: metadata for the hub, scores on audit, licences, tables that hold."""

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.utils import validate_repo_id

from mosaic.app.shapes import AuditShape, BudgetShape, Report
from mosaic.app.views.cards import cell, dataset_card, model_card
from mosaic.app.views.result import compared
from mosaic.app.views.text import report_text
from mosaic.core.types.data import CurationReport
from mosaic.core.types.evaluation import Difference, FailureProfile, Score
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Adapter, Round, Trial, TrialSpec
from training.data.provenance import Origin

PLAN = ActionPlan(
    rationale="more\nof a", ratios={"a": 0.7, "b": 0.3}, bucket_weights={"a": {"x": 0.4, "y": 0.6}}
)
BUCKET = {"requested": 70, "selected": 60, "short": 10, "rows": 5, "focus_rows": 0}
CURATED = CurationReport.model_validate(
    {
        "datasets": {d: {**BUCKET, "buckets": {"x": BUCKET}} for d in "ab"},
        "total": {**BUCKET, "rows": 10},
        "digest": "d",
    }
)
SCORE = Score(mean=4.0, low=3.5, high=4.5, n_scored=9)
SPEC = TrialSpec(plan=PLAN, tokens=2_000, base="0" * 64, pool="1" * 64)
ADAPTER = Adapter(
    digest="f" * 64, base="0" * 64, tokens=1234, supervised=600, steps=9, loss=1.0, seconds=2.0
)
TRIAL = Trial(
    id=SPEC.id,
    spec=SPEC,
    curation=CURATED,
    adapter=ADAPTER,
    scores={"safety": {"steering": SCORE, "selection": SCORE}},
    profile=FailureProfile(round=2, slices=[]),
)
ROUND = Round(round=2, trials=[TRIAL], counts=TRIAL.id, planner="llm")
ORIGINS = [
    Origin(
        dataset="a",
        source="hub:some|where",
        licence="odc-by",
        rows=9,
        left_out={"bad rows": 2},
        command="python -m x",
    ),
    Origin(dataset="b", source="own", licence="mit", rows=3),
    Origin(dataset="c", source="not used", licence="gpl", rows=3),
]


RISE = Difference(mean=0.75, low=0.5, high=1.0, clusters=40)
FALL = Difference(mean=-0.75, low=-1.0, high=-0.5, clusters=40)


def report(chosen, change=RISE):
    audited, before = (SCORE.model_copy(update={"mean": mean}) for mean in (3.25, 2.5))
    return Report(
        run="run",
        config_digest="c" * 64,
        planner="llm",
        objectives=["safety"],
        traded=["safety"],
        targets={"safety": None},
        floors={"safety": None},
        state="finished",
        stop=None,
        rounds=[],
        calibration=None,
        archive=[],
        ranking=[],
        chosen=chosen,
        audit=AuditShape(
            base={"safety": before},
            static={},
            chosen={"safety": audited},
            gain={},
            against_base={"safety": change},
            fell=["safety"] if change.fell(noise=0.5) else [],
            compared_to_base=compared({"safety": change}, {"safety": 0.5}),
        ),
        audits=[],
        hypervolume=[],
        budget=BudgetShape(total=0, spent=0, reserved=0, left=0),
        model_calls={},
    )


def test_the_chosen_round_is_told_by_its_audit_scores():
    text = model_card("run", "llama", ROUND, report(2), ORIGINS)
    data = ModelCard(text).data
    assert (data.base_model, data.library_name) == ("llama", "peft")
    assert data.eval_results[0].metric_value == 3.25
    assert "| safety | 3.25 | 3.50 to 4.50 | 9 | 2.50 |" in text
    assert "| a | 0.700 | x 0.40, y 0.60 |" in text
    assert "python -m mosaic run run/config.json" in text


def test_the_card_says_by_interval_whether_it_beats_the_base_and_the_pools_own_proportions():
    text = model_card("run", "llama", ROUND, report(2), ORIGINS)
    assert "| safety | not measured | better: +0.75 (+0.50 to +1.00) |" in text
    assert "worse: -0.75" in model_card("run", "llama", ROUND, report(2, FALL), ORIGINS)
    # The audit is of the chosen round: of any other nothing is said.
    assert "less the base" not in model_card("run", "llama", ROUND, report(1), ORIGINS)


@pytest.mark.parametrize(
    ("base", "named"),
    [("org/name", True), ("model", True), ("my model", False), ("a/b/c", False), ("../up", False)],
)
def test_the_card_is_what_the_hubs_library_takes(base, named):
    card = ModelCard(model_card("run", base, ROUND, report(2), ORIGINS))
    assert (card.data.base_model == base) == named
    if named:
        validate_repo_id(base)
    assert card.data.eval_results[0].task_type == "text-generation"
    # What the library writes of it is what stands there: nothing was lost on the way.
    again = ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text}")
    assert again.data.to_dict() == card.data.to_dict()


def test_a_round_that_was_not_scored_has_no_results_for_the_hub():
    empty = SCORE.model_copy(update={"mean": None, "low": None, "high": None, "n_scored": 0})
    trial = TRIAL.model_copy(update={"scores": {"safety": {"selection": empty}}})
    unscored = ROUND.model_copy(update={"trials": [trial]})
    assert "model-index" not in model_card("run", "llama", unscored, report(1), ORIGINS)


def test_a_result_that_fell_below_the_base_says_so_in_the_first_line():
    fallen, stood = report(2, FALL), report(2)
    told = "; worse than the base: safety -0.75 (-1.00 to -0.50)"
    assert report_text(fallen).splitlines()[0] == f"run: finished{told}"
    assert report_text(stood).splitlines()[0] == "run: finished"
    line = "Fell below the base: safety."
    assert line in model_card("run", "llama", ROUND, fallen, ORIGINS)
    assert line not in model_card("run", "llama", ROUND, stood, ORIGINS)
    # The round that was not audited is not known to have fallen.
    assert line not in model_card("run", "llama", ROUND, report(1, FALL), ORIGINS)


def test_any_other_round_says_that_its_scores_are_optimistic():
    text = model_card("run", "llama", ROUND, report(1), ORIGINS)
    assert "| safety | 4.00 | 3.50 to 4.50 | 9 |" in text
    assert "optimistic" in text


def test_the_data_set_card_names_licence_and_source_of_what_was_used():
    text = dataset_card("run", ROUND, ORIGINS)
    data = DatasetCard(text).data
    assert data.license == ["mit", "odc-by"]
    assert data.size_categories == ["n<1K"]
    assert "| a | hub:some\\|where | odc-by | 9 | 2 bad rows |" in text
    assert "gpl" not in text
    assert "    python -m x" in text


def test_a_licence_that_nobody_knows_is_said_to_be_unknown():
    assert DatasetCard(dataset_card("run", ROUND, ORIGINS[:1])).data.license == [
        "odc-by",
        "unknown",
    ]
    text = dataset_card("run", ROUND, None)
    assert DatasetCard(text).data.license == "unknown"
    assert "not at hand" in text


def test_a_cell_stays_in_its_table():
    assert cell("a|b\nc") == "a\\|b c"
    assert (
        yaml.safe_load(dataset_card("a: [", ROUND, []).split("---")[1])["pretty_name"]
        == "a: [, round 2"
    )
