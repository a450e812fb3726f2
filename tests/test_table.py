"""Planners on a table of mixtures: the surface over it, and the runs that are driven on a landscape."""

import importlib.util

import numpy as np
import pytest

from agent.planners.baselines import StaticPlanner
from agent.planners.surrogate import SurrogatePlanner
from benchmarks.drive import FREE, Drive
from benchmarks.figures import CannotRun
from benchmarks.landscapes import TableLandscape
from benchmarks.planners import OPTIONAL, available
from benchmarks.planning import LogLandscape
from benchmarks.samplers import QnehviPlanner
from benchmarks.scripted import Adversary, ScriptedPlanner, takes_the_first_suggestion
from benchmarks.surface import Surface, explained, read_table

DOMAINS, TARGETS = ("one", "two", "three"), ("one", "two")


@pytest.fixture
def folder(tmp_path):
    """A table whose losses fall with the logarithm of their domain's share."""
    draws = np.random.default_rng(0)
    mixtures = ["index," + ",".join(f"train_the_pile_{name}" for name in DOMAINS)]
    losses = ["index," + ",".join(f"metric/the_pile_{name}_val_loss" for name in TARGETS)]
    for index in range(1, 41):
        shares = draws.dirichlet((1, 1, 1))
        row = 4 - 0.5 * np.log(shares[:2] + 0.01)
        mixtures.append(f"{index}," + ",".join(f"{share:.4f}" for share in shares))
        losses.append(f"{index}," + ",".join(f"{loss:.6f}" for loss in row))
    (tmp_path / "mixture_60m.csv").write_text("\n".join(mixtures))
    (tmp_path / "loss_60m.csv").write_text("\n".join(losses))
    return tmp_path


def test_a_surface_foretells_losses_that_it_has_not_seen(folder):
    table = read_table(folder)
    assert (table.domains, table.targets) == (list(DOMAINS), list(TARGETS))
    surface = Surface(table.shares, table.losses)
    assert explained(table, surface.lengths).min() > 0.8


@pytest.fixture
def landscape(folder):
    """Two objectives over the table: one data set has a bucket for each of two slices."""
    table = read_table(folder)
    groups = {"first": ["one"], "second": ["two", "three"]}
    return TableLandscape(table, Surface(table.shares, table.losses), groups)


def test_qnehvi_tries_a_new_mixture_each_round_and_the_same_one_again(landscape):
    pytest.importorskip("botorch")
    searched = Drive(landscape, seed=1, limits=FREE).run(QnehviPlanner(), rounds=2)
    static = Drive(landscape, seed=1, limits=FREE).run(StaticPlanner(), rounds=1)
    assert len({tuple(point) for point in [*searched.points, *static.points]}) == 3
    again = Drive(landscape, seed=1, limits=FREE).run(QnehviPlanner(), rounds=1)
    assert again.points == searched.points[:1]


def test_a_run_of_first_suggestions_is_that_of_profile_and_harm_has_few_rounds(landscape):
    own = Drive(landscape, seed=1).run(SurrogatePlanner(), rounds=3)
    suggested = Drive(landscape, seed=1).run(ScriptedPlanner(takes_the_first_suggestion), rounds=3)
    assert suggested.points == own.points
    drive = Drive(landscape, seed=1)
    harm = ScriptedPlanner(Adversary(drive))
    harmed = drive.run(harm, rounds=3)
    assert harm.explored == 1  # of three rounds 0.4 at most
    assert harmed.volume < own.volume


@pytest.mark.parametrize("library", OPTIONAL)
def test_a_planner_whose_library_is_missing_is_a_row_that_says_so(monkeypatch, library):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == library else found(name)
    )
    planners, rows = available()
    assert not planners.keys() & set(OPTIONAL[library])
    assert "profile" in planners
    assert any(f"need {library}" in row["what"] and row["figure"] is None for row in rows)


def test_a_folder_without_the_table_is_named(tmp_path):
    with pytest.raises(CannotRun, match=r"has no mixture_60m\.csv"):
        read_table(tmp_path)


def test_a_driven_run_measures_the_truth_and_not_its_noise():
    drive = Drive(LogLandscape(), seed=1, limits=FREE)
    static = drive.run(StaticPlanner(), rounds=2)
    assert static.points[0] == static.points[1]
    assert static.volumes == [static.volume] * 2
    drive = Drive(LogLandscape(), seed=1, limits=FREE, foresee=True)
    searched = drive.run(SurrogatePlanner(), rounds=2)
    assert searched.volume >= max(searched.volumes)
    assert len(searched.forecasts) == 5
