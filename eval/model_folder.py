"""What a folder of a Hugging Face model must be, and what its small files say.

`model_faults` is the whole list; `check_model_folder` raises for the part that even a tokenizer's
reader needs. Weights are opened for their headers alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.model_kind import code_fault, kind_fault, quantisation_fault
from eval.model_weights import (
    DamagedWeights,
    embedding_rows,
    file_shapes,
    indexed_files,
    model_shapes,
    pickled_weights,
    weight_files,
)
from mosaic.core.errors import UsageError

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
FEW = 5


def check_model_folder(folder: Path) -> None:
    """Raise UsageError if a folder is not a model folder, or asks for code of its own to be run."""
    faults = _config_faults(folder)
    if faults:
        raise UsageError(f"{folder}: {_listed(faults)}")


def check_base_model(folder: Path) -> None:
    """Raise UsageError with every fault of a base model that its files tell."""
    faults = model_faults(folder)
    if faults:
        raise UsageError(f"{folder}: {_listed(faults)}")


def _listed(faults: list[str]) -> str:
    """One fault as it is; several on a line each."""
    if len(faults) == 1:
        return faults[0]
    return f"{len(faults)} faults" + "".join(f"\n  {fault}" for fault in faults)


def model_faults(base: Path) -> list[str]:
    """Every reason why a folder cannot be a base model, as far as its small files tell.

    Each is a sentence that says what to do. The folder is not named in it. An empty list means
    that nothing is known against it. Looked at are the config, the architecture, remote code,
    quantisation, the weight files (their headers), and the tokens beside the embedding's rows.
    """
    whole = _not_a_folder(base)
    if whole:
        return [whole]
    faults = [*_config_faults(base), *_end_faults(base)]
    config = read_json(base / CONFIG)
    if config is not None:
        found = (kind_fault(config), quantisation_fault(config))
        faults += [fault for fault in found if fault]
    faults += _weight_faults(base)
    if config is not None and not faults:
        faults += _token_faults(base, config)
    return faults


def _not_a_folder(base: Path) -> str | None:
    """What a path is if it is not a model folder at all."""
    if not base.exists():
        return "no such folder; give a Hugging Face model folder, or org/name@revision of the hub"
    if base.is_file():
        what = "a GGUF file" if base.suffix == ".gguf" else "a file"
        return f"is {what}; give a Hugging Face model folder with config.json and *.safetensors"
    if not (base / CONFIG).is_file() and (base / "adapter_config.json").is_file():
        return (
            "is an adapter, not a model (adapter_config.json); merge it into its base first: "
            "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
            ".save_pretrained(MODEL), and save the tokenizer beside it"
        )
    return None


def _config_faults(folder: Path) -> list[str]:
    """Faults of config.json and tokenizer_config.json."""
    faults = []
    for name, needed in ((CONFIG, True), (TOKENIZER_CONFIG, False)):
        path = folder / name
        if not needed and not path.is_file():
            continue
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            said = "no readable" if needed else "not readable as JSON:"
            faults.append(
                f"{said} {name} ({error}); give a Hugging Face model folder, or org/name@revision "
                "of the hub"
            )
            continue
        if not isinstance(content, dict):
            faults.append(f"{name} is not a JSON object; give a Hugging Face model folder")
        elif "auto_map" in content:
            fault = code_fault(name, content)
            faults += [fault] if fault else []
    return faults


def _end_faults(base: Path) -> list[str]:
    """Faults of the files that name the tokens at which an answer ends."""
    faults = []
    for name in (GENERATION_CONFIG, CONFIG):
        content = read_json(base / name)
        if content is None:
            if name == GENERATION_CONFIG and (base / name).exists():
                faults.append(f"{name} is not a readable JSON object; copy it again, or remove it")
            continue
        named = content.get("eos_token_id")
        each = named if isinstance(named, list) else [] if named is None else [named]
        if not all(isinstance(one, int) for one in each):
            faults.append(
                f"{name}: eos_token_id: {named!r} is neither a token's number nor a list of such; "
                "mend it"
            )
    return faults


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object in a file; None if the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _weight_faults(base: Path) -> list[str]:
    """Faults of the weight files: none, pickles, GGUF, missing shards, damage."""
    try:
        shards = indexed_files(base)
    except (ValueError, KeyError, AttributeError, TypeError):
        return ["model.safetensors.index.json is damaged; copy the model again"]
    missing = [name for name in shards if not (base / name).is_file()]
    if missing:
        return [
            f"{len(missing)} of {len(shards)} weight files that the index lists are missing "
            f"({_few(missing)}); copy them, or download the model again"
        ]
    files = weight_files(base)
    if not files:
        return [_no_weights(base)]
    faults = []
    for path in files:
        try:
            file_shapes(path)
        except DamagedWeights as error:
            faults.append(f"weights are cut short or damaged ({error}); copy the model again")
    return faults


def _no_weights(base: Path) -> str:
    """What to do with a folder that has no safetensors weights."""
    pickles = pickled_weights(base)
    if pickles:
        return (
            f"weights only as {pickles[0].name}, which is a pickle; convert them to safetensors, "
            "on a machine where you trust them: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW), and save the tokenizer beside it"
        )
    gguf = sorted(base.glob("*.gguf"))
    if gguf:
        return (
            f"weights only as {gguf[0].name} (GGUF, for llama.cpp), which cannot be trained; take "
            "the model's original weights in safetensors, or convert: AutoModelForCausalLM."
            f"from_pretrained(FOLDER, gguf_file={gguf[0].name!r}).save_pretrained(NEW)"
        )
    return "no *.safetensors weights in it; give a complete model folder"


def _token_faults(base: Path, config: dict[str, Any]) -> list[str]:
    """Tokens that have no row in the embedding: the model would fail at the first of them."""
    declared = vocabulary_size(config)
    rows = embedding_rows(model_shapes(base))
    if rows is not None and declared is not None and rows != declared:
        return [
            f"{CONFIG} says vocab_size {declared:,}, and the embedding in the weights has "
            f"{rows:,} rows; they are of different models: copy both from one"
        ]
    limit = rows or declared
    fault = without_rows(token_ids(base), limit) if limit else None
    return [fault] if fault else []


def without_rows(tokens: dict[str, int], rows: int) -> str | None:
    """The fault of tokens whose ids are not rows of an embedding of `rows` rows, or None.

    >>> without_rows({"a": 0, "<|im_end|>": 2}, 2)
    "the tokenizer has 1 token without a row in the embedding of 2 ('<|im_end|>' is 2); add rows \
and train them (model.resize_token_embeddings(len(tokenizer)), then save), or take the tokenizer \
that belongs to the model"
    """
    outside = sorted((at, token) for token, at in tokens.items() if at >= rows)
    if not outside:
        return None
    some = _few([f"{token!r} is {at}" for at, token in outside])
    count = f"{len(outside):,} token{'' if len(outside) == 1 else 's'}"
    return (
        f"the tokenizer has {count} without a row in the embedding of {rows:,} ({some}); add rows "
        "and train them (model.resize_token_embeddings(len(tokenizer)), then save), or take the "
        "tokenizer that belongs to the model"
    )


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """`vocab_size` of a config, or of its text model's."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def token_ids(base: Path) -> dict[str, int]:
    """Token -> id, as the tokenizer's files say; a tokenizer without a fast form tells only part."""
    ids: dict[str, int] = {}
    fast = read_json(base / "tokenizer.json") or {}
    model = fast.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids |= {token: at for token, at in vocabulary.items() if isinstance(at, int)}
    elif isinstance(vocabulary, list):  # Unigram: pairs of token and score, in order
        ids |= {str(entry[0]): at for at, entry in enumerate(vocabulary) if entry}
    for entry in fast.get("added_tokens") or []:
        ids[str(entry.get("content"))] = int(entry.get("id", 0))
    decoder = (read_json(base / TOKENIZER_CONFIG) or {}).get("added_tokens_decoder")
    for at, entry in (decoder or {}).items():
        ids[str(entry.get("content"))] = int(at)
    for token, at in (read_json(base / "added_tokens.json") or {}).items():
        ids[token] = int(at)
    return ids


def _few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more:,} more" if more > 0 else "")


def stop_token_ids(folder: Path) -> list[int]:
    """The end-of-turn tokens of a model folder, from its generation config or else its config.

    Of a folder without `model_faults`: those tell damaged files and what is not a token.
    """
    for name in (GENERATION_CONFIG, CONFIG):
        value = (read_json(folder / name) or {}).get("eos_token_id")
        if value is not None:
            return sorted(value if isinstance(value, list) else [value])
    return []
