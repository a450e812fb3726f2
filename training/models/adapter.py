"""Model and adapter folders: what identifies a base, and adapters in a canonical form.

Weights are read from safetensors only: a pickle could run code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from eval.model_folder import check_model_folder
from mosaic.core.errors import TrainingError, UsageError
from mosaic.core.types.base import digest_of

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
IDENTITY = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
FLOAT32_BYTES = 4
Shapes = dict[str, list[int]]


def model_digest(folder: Path) -> str:
    """SHA-256 over a base model's weights, config, tokenizer and chat template.

    Raises UsageError for weights that are pickles, missing or damaged, and for remote code.
    """
    from safetensors import SafetensorError

    check_model_folder(folder)
    files = _matching(folder, IDENTITY)
    if not any(path.suffix == ".safetensors" for path in files):
        pickles = _matching(folder, PICKLES)
        if pickles:
            raise UsageError(
                f"{folder}: weights only as {pickles[0].name}, which is a pickle; convert them to "
                "safetensors"
            )
        raise UsageError(f"{folder}: no *.safetensors weights in it")
    try:
        _model_shapes(folder)
    except SafetensorError as error:
        raise UsageError(
            f"{folder}: weights are cut short or damaged ({error}); copy the model again"
        ) from None
    return digest_of({path.name: _file_digest(path) for path in files})


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files of a folder that match any of the patterns, by name."""
    found: set[Path] = set()
    for pattern in patterns:
        found.update(folder.glob(pattern))
    return sorted(found)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonicalise(folder: Path, base_digest: str) -> None:
    """Reduce a saved adapter to its weights and a config that names its base by digest.

    The same weights and recipe then give the same bytes wherever the base lay. Anything else in
    the folder is removed. Raises TrainingError (`no_adapter`) if either file is missing.
    """
    for path in folder.iterdir():
        if path.name not in (WEIGHTS, CONFIG):
            path.unlink()
    if not _is_adapter(folder):
        raise TrainingError(
            f"the trainer ended without an adapter ({WEIGHTS} and {CONFIG})", "no_adapter"
        )
    config = json.loads((folder / CONFIG).read_text())
    config["base_model_name_or_path"] = f"sha256:{base_digest}"
    config["revision"] = None
    config.pop("auto_mapping", None)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _is_adapter(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def _file_shapes(path: Path) -> Shapes:
    """Name -> shape of each matrix in a safetensors file; no weight is read."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as opened:
        names = opened.keys()
        return {name: list(opened.get_slice(name).get_shape()) for name in names}


def _model_shapes(base: Path) -> Shapes:
    """The same for all files of a model folder."""
    shapes: Shapes = {}
    for part in sorted(base.glob("*.safetensors")):
        shapes |= _file_shapes(part)
    return shapes


def adapter_bytes(base: Path, rank: int) -> int:
    """Bytes of a LoRA of all linear layers in float32.

    A matrix of in x out gets two of rank x in and out x rank: with rank 16 and 4096 x 1024 that
    is 4 x 16 x (4096 + 1024) = 327,680 bytes.
    """
    numbers = 0
    for name, shape in _model_shapes(base).items():
        if len(shape) == 2 and ".layers." in name:
            numbers += rank * sum(shape)
    return FLOAT32_BYTES * numbers


def check_adapter(adapter: Path, base: Path) -> None:
    """Check that names and shapes of an adapter's matrices fit the base model.

    Raises TrainingError: `no_adapter` if there is nothing that can be read, `wrong_adapter` if
    it is not an adapter of this base.
    """
    from safetensors import SafetensorError

    if not _is_adapter(adapter):
        raise TrainingError(f"{adapter}: the trainer ended without an adapter", "no_adapter")
    try:
        matrices = _file_shapes(adapter / WEIGHTS)
    except SafetensorError as error:
        what = f"{adapter}: {WEIGHTS} is not readable: {error}"
        raise TrainingError(what, "no_adapter") from None
    if not matrices:
        raise TrainingError(f"{adapter}: the adapter is empty", "no_adapter")
    weights = _model_shapes(base)
    for name, shape in matrices.items():
        module, _, matrix = name.removeprefix("base_model.model.").rpartition(".lora_")
        weight = weights.get(f"{module}.weight")
        if weight is None:
            what = f"{adapter}: {name} has no counterpart in the base model"
            raise TrainingError(what, "wrong_adapter")
        fits = shape[1] == weight[1] if matrix.startswith("A") else shape[0] == weight[0]
        if not fits:
            what = f"{adapter}: {name} has shape {shape}, the base's weight {weight}"
            raise TrainingError(what, "wrong_adapter")
