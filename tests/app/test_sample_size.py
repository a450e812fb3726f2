"""What suites are large enough for is said before anything is spent."""

import re
from dataclasses import replace

import pytest

from benchmarks.standins import StandIn
from mosaic.app.sample_size import check_floors, independent, sample_size
from mosaic.core.errors import UsageError

NAMES = ("over_refusal", "safety")


@pytest.fixture(scope="module")
def standin():
    return StandIn.make(*[f"objectives.{name}.floor=base" for name in NAMES], per_slice=4)


@pytest.fixture
def objectives(standin):
    return standin.config.settings().objectives


def with_selection(suites, name, prompts):
    roles = suites[name]
    return {**suites, name: {**roles, "selection": replace(roles["selection"], prompts=prompts)}}


def grouped(prompts, size):
    """Prompts in groups of a size."""
    return [p.model_copy(update={"group": f"g{i // size}"}) for i, p in enumerate(prompts)]


def test_clusters_are_groups_and_prompts_without_one(standin):
    prompts = standin.inputs.suites["safety"]["selection"].prompts
    assert independent(prompts) == len(prompts) == 20
    assert independent(grouped(prompts, 4)) == 5
    assert independent([*grouped(prompts[:8], 4), *prompts[8:]]) == 14
    assert independent([prompts[0].model_copy(update={"valid": 0}), *prompts[1:]]) == 19


def test_a_floor_that_could_never_hold_is_refused_before_the_run(standin, objectives):
    suites = standin.inputs.suites
    check_floors(objectives, suites)
    few = with_selection(suites, "safety", suites["safety"]["selection"].prompts[:14])
    with pytest.raises(UsageError, match=r"objectives\.safety\.floor: 14 in selection\.jsonl"):
        check_floors(objectives, few)
    copies = with_selection(suites, "safety", grouped(suites["safety"]["selection"].prompts, 2))
    with pytest.raises(UsageError, match=r"objectives\.safety\.floor: 10 in"):
        check_floors(objectives, copies)
    check_floors([o.model_copy(update={"floor": None}) for o in objectives], few)


def test_fewer_prompts_show_only_greater_differences(standin, objectives):
    suites = standin.inputs.suites
    halved = with_selection(suites, "safety", suites["safety"]["selection"].prompts[:10])

    def shown(suites):
        finding = sample_size(objectives, suites)
        assert finding.check == "sample size"
        whole, slice_ = re.search(
            r"safety ([\d.]+) over \d+ selection prompts, ([\d.]+) over 4 prompts of a slice",
            finding.result,
        ).groups()
        return float(whole), float(slice_)

    whole, slice_ = shown(suites)
    assert whole < shown(halved)[0] < slice_
