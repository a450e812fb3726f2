"""Batches by length, packs, and the largest of either."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.types.runs import SftRecipe
from training.methods.batches import by_length, largest_batch, pack, positions

ROWS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def test_odd_rows_leave_every_batch_full_but_the_last():
    batches = by_length([5, 9, 5, 7, 6], 2, [1, 2])
    assert [len(b) for b in batches] == [2, 2, 2, 2, 2]
    assert sorted(i for b in batches for i in b) == sorted([*range(5)] * 2)


def test_batches_by_length_hold_every_row_once_and_waste_little():
    lengths = (np.random.default_rng(0).lognormal(4, 0.8, 4000).astype(int) + 8).tolist()
    batches = by_length(lengths, 8, [3])
    assert sorted(i for b in batches for i in b) == list(range(4000))
    assert sum(lengths) / positions(batches, lengths) >= 0.95
    assert batches != by_length(lengths, 8, [4])


@given(lengths=ROWS, size=st.integers(1, 9), epochs=st.integers(1, 4))
def test_no_batch_is_larger_than_the_largest(lengths, size, epochs):
    recipe = SftRecipe(batch_size=size, epochs=epochs)
    largest = positions([largest_batch(lengths, recipe)], lengths)
    batches = by_length(lengths, size, list(range(epochs)))
    assert max(positions([b], lengths) for b in batches) <= largest


def sizes(packs, lengths):
    return sorted(sum(lengths[row] for row in rows) for rows in packs)


@given(lengths=ROWS)
def test_no_pack_is_above_the_limit_and_the_fullest_come_out_again(lengths):
    packs = pack(lengths, 30)
    assert sorted(row for rows in packs for row in rows) == list(range(len(lengths)))
    assert max(sizes(packs, lengths)) <= 30
    recipe = SftRecipe(batch_size=3, packing=True, max_length=30)
    chosen = [lengths[row] for row in largest_batch(lengths, recipe)]
    assert sizes(pack(chosen, 30), chosen) == sizes(packs, lengths)[-3:]


@pytest.mark.parametrize("seed", range(3))
def test_packs_are_those_of_trl(seed):
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    lengths = np.random.default_rng(seed).integers(1, 65, 300).tolist()
    data = Dataset.from_dict({"input_ids": [[1] * n for n in lengths]})
    theirs = sorted(len(row["input_ids"]) for row in pack_dataset(data, 64, "bfd"))
    assert sizes(pack(lengths, 64), lengths) == theirs
