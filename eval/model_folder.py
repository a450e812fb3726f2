"""What a folder of a Hugging Face model must be, and what its small files say. No heavy imports."""

from __future__ import annotations

import json
from pathlib import Path

from mosaic.core.errors import UsageError


def check_model_folder(folder: Path) -> None:
    """Raise UsageError if a folder is not a model folder, or asks for code of its own to be run."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder}: no readable config.json ({error}); give a Hugging Face model folder"
        ) from None
    tokenizer_path = folder / "tokenizer_config.json"
    try:
        tokenizer = json.loads(tokenizer_path.read_text()) if tokenizer_path.is_file() else {}
    except ValueError as error:
        raise UsageError(f"{tokenizer_path}: not readable as JSON ({error})") from None
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if not isinstance(content, dict):
            raise UsageError(
                f"{folder}: {name} is not a JSON object; give a Hugging Face model folder"
            )
        if "auto_map" in content:
            raise UsageError(
                f"{folder}: {name} asks for remote code (auto_map), which is never run; "
                "use a plain model"
            )


def stop_token_ids(folder: Path) -> list[int]:
    """The end-of-turn tokens of a model folder, from its generation config or else its config."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return sorted(value if isinstance(value, list) else [value])
    return []
