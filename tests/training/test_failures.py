"""What libraries raise on a full disk or without memory is told apart from other failures."""

import errno
import shutil

import pytest
import torch

from mosaic.core.errors import TrainingError, UsageError
from training.methods.failures import FULL, classify_failure


class SafetensorError(Exception):
    """As safetensors has it: no OSError."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_an_oserror_whoever_found_it(tmp_path, error):
    with (
        pytest.raises(OSError, match=r"(?i)no space|quota") as caught,
        classify_failure(tmp_path / "not" / "yet"),
    ):
        raise error
    assert caught.value.errno in FULL


def test_a_failed_write_is_a_full_disk_only_where_there_is_no_room(tmp_path, monkeypatch):
    failed = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"), classify_failure(tmp_path):
        raise failed
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 4096)
    )
    with (
        pytest.raises(OSError, match="a write of the training failed") as caught,
        classify_failure(tmp_path),
    ):
        raise failed
    assert caught.value.errno == errno.ENOSPC


def test_memory_that_ran_out_is_named_and_the_rest_passes(tmp_path):
    with pytest.raises(TrainingError, match="batch_size") as caught, classify_failure(tmp_path):
        torch.empty(10**15)
    assert caught.value.failure == "out_of_memory"
    for error in (
        UsageError("writing is refused"),
        ValueError("no such thing"),
        FileNotFoundError(2, "gone"),
    ):
        with pytest.raises(type(error)) as same, classify_failure(tmp_path):
            raise error
        assert same.value is error
