"""Small steps of the real kinds, and the journal that they are written to."""

import pytest

from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.records import Train
from mosaic.core.types.runs import BASE, TRAINING_SET, Adapter, SftRecipe, TrainJob


@pytest.fixture
def journal(new_journal, tmp_path):
    return new_journal(tmp_path / "run", cap=100, config={"b": 1, "a": 2})


@pytest.fixture
def steps(journal):
    return Steps(journal, Store(journal.folder))


@pytest.fixture
def training():
    """Makes the training step number n."""

    def make(number=0):
        inputs = {BASE: "base", TRAINING_SET: f"set {number}"}
        return Train(job=TrainJob(recipe=SftRecipe(), inputs=inputs, seed=1))

    return make


@pytest.fixture
def adapter():
    """Makes the adapter number n."""

    def make(number=0):
        return Adapter(
            digest=f"adapter {number}",
            base="base",
            tokens=10,
            supervised=5,
            steps=1,
            loss=0.5,
            seconds=0.0,
        )

    return make
