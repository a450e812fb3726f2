"""Model and adapter folders: what identifies a base, and adapters in a canonical form without pickles."""

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


def model_digest(folder: Path) -> str:
    """SHA-256 over a base model's weights, config, tokenizer and chat template. UsageError for pickles, remote code or
    damaged weights."""
    from safetensors import SafetensorError

    check_model_folder(folder)
    pickles = sorted(
        p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in folder.glob(pattern)
    )
    if pickles and not list(folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder}: weights only as {pickles[0]}, which is a pickle; convert them to safetensors"
        )
    files = sorted({p for pattern in IDENTITY for p in folder.glob(pattern)})
    if not any(p.suffix == ".safetensors" for p in files):
        raise UsageError(f"{folder}: no *.safetensors weights in it")
    try:
        _shapes(folder)
    except SafetensorError as error:
        raise UsageError(
            f"{folder}: weights are cut short or damaged ({error}); copy the model again"
        ) from None
    return digest_of({p.name: _digest(p) for p in files})


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonicalise(folder: Path, base_digest: str) -> None:
    """Reduce a saved adapter to weights and a config with sorted keys that names its base by digest.

    Same weights and recipe give the same bytes wherever the base lay. Anything else in the folder is removed.
    """
    for path in folder.iterdir():
        if path.name not in (WEIGHTS, CONFIG):
            path.unlink()
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
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


def _shapes(base: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for part in sorted(base.glob("*.safetensors")):
        with safe_open(part, framework="numpy") as opened:
            names = opened.keys()
            shapes |= {name: list(opened.get_slice(name).get_shape()) for name in names}
    return shapes


def adapter_bytes(base: Path, rank: int) -> int:
    """Bytes of a LoRA of all linear layers in float32: rank x (in + out) per matrix."""
    return sum(
        4 * rank * sum(s) for name, s in _shapes(base).items() if len(s) == 2 and ".layers." in name
    )


def check_adapter(adapter: Path, base: Path) -> None:
    """Names and shapes of an adapter's matrices must fit the base model (TrainingError)."""
    from safetensors import SafetensorError, safe_open

    def broken(text: str, failure: str = "wrong_adapter") -> TrainingError:
        return TrainingError(f"{adapter}: {text}", failure)

    shapes = _shapes(base)
    if not (adapter / WEIGHTS).is_file() or not (adapter / CONFIG).is_file():
        raise broken("the trainer ended without an adapter", "no_adapter")
    try:
        with safe_open(adapter / WEIGHTS, framework="numpy") as opened:
            names = opened.keys()
            found = {name: list(opened.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise broken(f"{WEIGHTS} is not readable: {error}") from None
    if not found:
        raise broken("the adapter is empty", "no_adapter")
    for name, shape in found.items():
        module, _, matrix = name.removeprefix("base_model.model.").rpartition(".lora_")
        weight = shapes.get(f"{module}.weight")
        if weight is None:
            raise broken(f"{name} has no counterpart in the base model")
        fits = shape[1] == weight[1] if matrix.startswith("A") else shape[0] == weight[0]
        if not fits:
            raise broken(f"{name} has shape {shape}, the base's weight {weight}")
