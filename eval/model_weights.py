"""The weight files of a Hugging Face model folder: which they are, and what their headers say.

Weights are read from safetensors only: a pickle could run code. No weight is read here.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER = 100_000_000
# How architectures call the embedding of their input tokens.
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
Shapes = dict[str, list[int]]


class DamagedWeights(ValueError):
    """A weight file whose header cannot be read."""


def indexed_files(folder: Path) -> list[str]:
    """Names of the shards that the folder's index lists, whether they exist or not.

    Empty without an index. Raises ValueError if the index is not one.
    """
    path = folder / INDEX
    if not path.is_file():
        return []
    names = json.loads(path.read_text())["weight_map"].values()
    return sorted({str(name) for name in names})


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: the index's shards, one file, or all *.safetensors.

    A folder may hold the same weights twice, such as Mistral's `consolidated.safetensors` beside
    the shards; those are left out.
    """
    shards = indexed_files(folder)
    if shards:
        return [folder / name for name in shards]
    single = folder / SINGLE
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def pickled_weights(folder: Path) -> list[Path]:
    """Weights that are pickles, by name."""
    found: set[Path] = set()
    for pattern in PICKLES:
        found.update(folder.glob(pattern))
    found.discard(folder / "training_args.bin")
    return sorted(found)


def file_shapes(path: Path) -> Shapes:
    """Name -> shape of each tensor in a safetensors file. Raises DamagedWeights."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        first = stream.read(8)
        if first + stream.read(len(LFS_POINTER) - 8) == LFS_POINTER:
            raise DamagedWeights(
                f"{path.name} is a Git LFS pointer, not the weights; run `git lfs pull` there"
            )
        stream.seek(8)
        (length,) = struct.unpack("<Q", first) if len(first) == 8 else (size,)
        if length > min(MAX_HEADER, size - 8):
            raise DamagedWeights(f"{path.name} is cut short")
        try:
            header = json.loads(stream.read(length))
            return _checked(header, size - 8 - length)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedWeights(
                f"the header of {path.name} does not fit the file, which is cut short or damaged"
            ) from None


def _checked(header: dict[str, dict[str, list[int]]], data: int) -> Shapes:
    """The shapes in a header, if what it describes fills the file's data exactly."""
    shapes, end = {}, 0
    for name, entry in header.items():
        if name != "__metadata__":
            shapes[name] = [int(length) for length in entry["shape"]]
            end = max(end, int(entry["data_offsets"][1]))
    if end != data:
        raise ValueError(end)
    return shapes


def model_shapes(folder: Path) -> Shapes:
    """Name -> shape of each tensor of a model folder. Raises DamagedWeights."""
    shapes: Shapes = {}
    for path in weight_files(folder):
        shapes |= file_shapes(path)
    return shapes


def embedding_rows(shapes: Shapes) -> int | None:
    """Rows of the input embedding: token ids must be below. None if no tensor has a known name.

    >>> embedding_rows({"model.embed_tokens.weight": [32000, 64], "lm_head.weight": [32000, 64]})
    32000
    """
    for name, shape in shapes.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in EMBEDDINGS and name.endswith(".weight") and len(shape) == 2:
            return shape[0]
    return None
