"""Properties of curation: budget, supersets, focus, exclusion, determinism."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosaic.core.errors import UsageError
from mosaic.core.types.data import Focus, Mixture
from training.data.curate import curate, quotas, write_training_set
from training.data.mixture_checks import check_mixture
from training.data.pool import build_pool
from training.data.selection import splitmix64


def mixture(budget=400, **changes):
    base = {
        "ratios": {"a": 0.5, "b": 0.5},
        "budget": budget,
        "seed": 1,
        "min_quality": 2,
        "topup": False,
    }
    return Mixture(**{**base, **changes})


def chosen(pool, curated):
    return set(pool.rows(curated.indices)["id"].to_pylist())


WEIGHTS = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)


def share(values):
    return {n: v / sum(values) for n, v in zip("xyz", values, strict=True)}


@st.composite
def mixtures(draw):
    first = draw(st.integers(0, 10)) / 10
    weights = {d: share(draw(WEIGHTS)) for d in "ab" if draw(st.booleans())}
    focus = {}
    if draw(st.booleans()):
        focus["a"] = Focus(include={"topic": ["t1"]}, share=draw(st.sampled_from([0.0, 0.3, 1.0])))
    return Mixture(
        ratios={"a": first, "b": 1 - first},
        bucket_weights=weights,
        focus=focus,
        budget=draw(st.integers(1, 900)),
        seed=draw(st.integers(0, 99)),
        min_quality=draw(st.integers(1, 5)),
        max_repeat=draw(st.integers(1, 3)),
        topup=draw(st.booleans()),
    )


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mixtures())
def test_never_over_budget_and_reports_add_up(small_pool, made):
    curated = curate(small_pool, made)
    tokens = int(small_pool.column("n_tokens")[curated.indices].sum())
    report = curated.report
    assert tokens == report.total.selected <= made.budget
    assert (
        report.total.requested
        == sum(q for per in quotas(small_pool, made).values() for q in per.values())
        <= made.budget
    )
    for dataset in report.datasets.values():
        assert dataset.selected == sum(b.selected for b in dataset.buckets.values())
        for bucket in dataset.buckets.values():
            assert bucket.requested > 0 or bucket.rows == 0
            assert bucket.short == max(0, bucket.requested - bucket.selected)
    counts = np.unique(curated.indices, return_counts=True)[1]
    assert counts.max(initial=0) <= made.max_repeat


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mixtures(), st.integers(1, 400))
def test_a_larger_budget_takes_a_superset(small_pool, made, more):
    small = made.model_copy(update={"topup": False, "max_repeat": 1})
    large = small.model_copy(update={"budget": small.budget + more})
    assert chosen(small_pool, curate(small_pool, small)) <= chosen(
        small_pool, curate(small_pool, large)
    )


@pytest.mark.parametrize("side", ["include", "exclude"])
@pytest.mark.parametrize(
    ("attribute", "criterion", "kind"),
    [
        ("topic", {"min": 1}, "text"),
        ("tags", {"max": 1}, "list"),
        ("size", ["5"], "number"),
        ("size", [True], "number"),
    ],
)
def test_a_criterion_that_can_match_nothing_of_its_kind_is_refused(
    small_pool, side, attribute, criterion, kind
):
    focus = Focus.model_validate({side: {attribute: criterion}})
    found = check_mixture(small_pool, mixture(focus={"a": focus}))
    assert ("criterion_kind", f"focus.a.{side}.{attribute}", kind) in {
        (v.rule, v.path, v.limit) for v in found
    }


@pytest.mark.parametrize(("value", "message"), [("\ud800", "lone surrogate"), (10**400, "64 bits")])
def test_a_value_that_no_pool_can_hold_is_no_focus(value, message):
    with pytest.raises(ValueError, match=message):
        Focus(include={"topic": [value]})


@pytest.mark.parametrize("seed", range(6))
def test_what_is_left_goes_to_the_buckets_that_lack_most(small_pool, seed):
    weights = {"a": {"x": 0.04, "y": 0.48, "z": 0.48}, "b": {"x": 0.9, "y": 0.05, "z": 0.05}}
    made = mixture(
        budget=600, seed=seed, ratios={"a": 0.9, "b": 0.1}, bucket_weights=weights, topup=True
    )
    report = curate(small_pool, made).report
    longest = int(small_pool.column("n_tokens").max())
    buckets = [b for d in report.datasets.values() for b in d.buckets.values()]
    assert report.total.selected > 600 - longest
    assert all(b.selected < b.requested + longest for b in buckets)
    # A bucket that is asked for next to nothing gets next to nothing.
    assert sum(b.selected > b.requested for b in buckets) < len(buckets)


def test_dropping_a_bucket_does_not_reshuffle_the_others(small_pool):
    both = mixture(bucket_weights={"a": {"x": 0.5, "y": 0.5}}, ratios={"a": 1.0, "b": 0.0})
    alone = mixture(budget=200, bucket_weights={"a": {"x": 1.0}}, ratios={"a": 1.0, "b": 0.0})
    inside = small_pool.buckets("a")["x"]
    first = {i for i in curate(small_pool, both).indices if inside.start <= i < inside.end}
    assert first == set(curate(small_pool, alone).indices)


def test_focus_fills_its_share_and_no_more_than_stock(small_pool):
    made = mixture(
        focus={"a": Focus(include={"tags": ["h3"]}, share=0.6)},
        bucket_weights={"a": share([1, 1, 1])},
    )
    for bucket in curate(small_pool, made).report.datasets["a"].buckets.values():
        assert bucket.focus_rows >= 1
        assert bucket.selected >= bucket.requested - 40


@pytest.mark.parametrize(
    "exclude",
    [
        {"topic": ["t1"]},
        {"tags": ["g0", "h5"]},
        {"size": {"min": 5}},
        {"size": [3, 4], "topic": ["t0"]},
    ],
)
def test_an_excluded_row_is_never_selected(small_pool, exclude, rows):
    focus = Focus(exclude=exclude)
    ids = chosen(
        small_pool, curate(small_pool, mixture(budget=2000, focus={"a": focus, "b": focus}))
    )
    assert ids
    for row in rows():
        attributes = row["attributes"]
        hit = any(
            (
                not isinstance(c, dict)
                and ({str(v) for v in c} & {str(v) for v in np.atleast_1d(attributes[name])})
            )
            or (isinstance(c, dict) and attributes[name] >= c["min"])
            for name, c in exclude.items()
        )
        if hit:
            assert row["id"] not in ids


def test_quality_below_the_threshold_is_never_selected(small_pool):
    curated = curate(small_pool, mixture(budget=3000, min_quality=4))
    assert small_pool.column("quality")[curated.indices].min() >= 4


def test_same_plan_same_rows_and_another_seed_other_rows(small_pool):
    one, two = curate(small_pool, mixture()), curate(small_pool, mixture())
    assert one.report == two.report
    assert list(one.indices) == list(two.indices)
    assert curate(small_pool, mixture(seed=2)).report.digest != one.report.digest


def test_source_order_does_not_matter(small_pool, tmp_path, rows, jsonl):
    mixed = rows()[::-1]
    sources = [jsonl(tmp_path / "1.jsonl", mixed[:50]), jsonl(tmp_path / "2.jsonl", mixed[50:])]
    other = build_pool(
        sources, tmp_path / "pool", model=None, max_length=512, trust_token_counts=True
    )
    assert other.digest == small_pool.digest
    assert curate(other, mixture()).report == curate(small_pool, mixture()).report


def test_the_order_key_is_fixed_arithmetic():
    keys = splitmix64(np.array([0, 1, 2**63], np.uint64), 7)
    assert [int(k) for k in keys] == [
        4659817285964113758,
        16920444926201547018,
        6591543692610946555,
    ]


def test_unknown_names_and_empty_focus_are_named_by_path(small_pool):
    made = mixture(
        ratios={"a": 0.5, "c": 0.5},
        bucket_weights={"a": {"x": 0.5, "w": 0.5}},
        focus={"a": Focus(include={"colour": ["red"]}), "b": Focus(include={"topic": ["t9"]})},
    )
    found = {(v.path, v.rule) for v in check_mixture(small_pool, made)}
    assert found == {
        ("ratios.c", "unknown_dataset"),
        ("bucket_weights.a.w", "unknown_bucket"),
        ("focus.a.include.colour", "unknown_attribute"),
        ("focus.b.include", "focus_matches_nothing"),
    }
    with pytest.raises(UsageError, match=r"bucket_weights\.a\.w"):
        curate(small_pool, made)


def test_exact_shares(small_pool):
    made = mixture(
        budget=10,
        ratios={"a": 0.1, "b": 0.9},
        bucket_weights={"a": {"x": 1.0}, "b": {"x": 0.1, "y": 0.9}},
    )
    assert quotas(small_pool, made) == {"a": {"x": 1}, "b": {"x": 0, "y": 8}}


def test_a_data_set_without_usable_rows_is_short_of_all_it_was_asked_for(tmp_path, rows, jsonl):
    some = [{**r, "quality": 2 if r["dataset"] == "b" else 5} for r in rows()]
    pool = build_pool(
        [jsonl(tmp_path / "r.jsonl", some)],
        tmp_path / "p",
        model=None,
        max_length=512,
        trust_token_counts=True,
    )
    report = curate(pool, mixture(budget=100, min_quality=4)).report
    assert report.total.requested > 100 - 6  # a floor for each bucket
    assert (report.datasets["b"].selected, report.datasets["b"].short) == (
        0,
        report.datasets["b"].requested,
    )
    assert report.datasets["b"].requested > 50 - 3


def test_weights_rounded_to_six_digits_sum_to_one():
    assert mixture(ratios={"a": 0.333333, "b": 0.333333, "c": 0.333333}).ratios["c"] == 0.333333
    with pytest.raises(ValueError, match="sum to"):
        mixture(ratios={"a": 0.333333, "b": 0.333333, "c": 0.333332})


def test_the_training_set_says_why_each_row_is_there(small_pool, tmp_path):
    made = mixture(focus={"a": Focus(include={"topic": ["t1"]})}, topup=True)
    curated = curate(small_pool, made)
    write_training_set(small_pool, curated, tmp_path / "set.parquet")
    write_training_set(small_pool, curated, tmp_path / "again.parquet")
    assert (tmp_path / "set.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    table = pq.read_table(tmp_path / "set.parquet")
    assert table["n_tokens"].to_numpy().sum() == curated.report.total.selected
    assert set(table["dataset"].to_pylist()) == {"a", "b"}
    assert table["focus"].to_numpy().any()
    order = table["dataset"].to_pylist()
    assert order != sorted(order)
