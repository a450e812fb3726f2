"""Model and adapter folders: what identifies a base, and adapters in a canonical form.

Weights are read from safetensors only: a pickle could run code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from eval.model_folder import check_base_model
from eval.model_weights import DamagedWeights, Shapes, file_shapes
from mosaic.core.errors import TrainingError, UsageError
from mosaic.core.types.base import digest_of
from mosaic.core.types.runs import LoraRecipe
from training.models.lora_layout import lora_layout

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
IDENTITY = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
FLOAT32_BYTES = 4


def model_digest(folder: Path) -> str:
    """SHA-256 over a base model's weights, config, tokenizer and chat template.

    Raises UsageError with every fault of the folder (`eval.model_folder.model_faults`).
    """
    check_base_model(folder)
    return digest_of({path.name: _file_digest(path) for path in _matching(folder, IDENTITY)})


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


def adapter_bytes(base: Path, recipe: LoraRecipe) -> int:
    """Bytes of a recipe's adapter in float32.

    A matrix of in x out gets two of rank x in and out x rank: with rank 16 and 4096 x 1024 that
    is 4 x 16 x (4096 + 1024) = 327,680 bytes.
    """
    return FLOAT32_BYTES * lora_layout(base, recipe.lora_r, recipe.target_modules).trained


def check_adapter(adapter: Path, base: Path) -> None:
    """Check that an adapter's matrices are those that PEFT makes of this base for its config.

    Raises TrainingError: `no_adapter` if there is nothing that can be read, `wrong_adapter` if
    it is not an adapter of this base.
    """
    if not _is_adapter(adapter):
        raise TrainingError(f"{adapter}: the trainer ended without an adapter", "no_adapter")
    try:
        matrices = file_shapes(adapter / WEIGHTS)
    except DamagedWeights as error:
        what = f"{adapter}: {WEIGHTS} is not readable: {error}"
        raise TrainingError(what, "no_adapter") from None
    if not matrices:
        raise TrainingError(f"{adapter}: the adapter is empty", "no_adapter")
    expected = _expected(adapter, base)
    for name, shape in matrices.items():
        wanted = expected.get(name)
        if wanted is None:
            what = f"{adapter}: {name} has no counterpart in the base model"
            raise TrainingError(what, "wrong_adapter")
        if shape != wanted:
            what = f"{adapter}: {name} has shape {shape}, and fits the base with {wanted}"
            raise TrainingError(what, "wrong_adapter")
    missing = sorted(expected.keys() - matrices.keys())
    if missing:
        what = f"{adapter}: {len(missing)} matrices are missing, such as {missing[0]}"
        raise TrainingError(what, "wrong_adapter")


def _expected(adapter: Path, base: Path) -> Shapes:
    """The matrices that an adapter of this config has on this base. Raises TrainingError."""
    config = json.loads((adapter / CONFIG).read_text())
    try:
        return lora_layout(base, config["r"], config["target_modules"]).shapes
    except UsageError as error:
        what = f"{adapter}: its layers have no counterpart in the base model: {error}"
        raise TrainingError(what, "wrong_adapter") from None
