"""The parts of an export that other programs load: the adapter under its base's name, and a merge.

Inside a run a base is known by its digest. Outside it is known by the name that its owner gives
it, so that PEFT, transformers and vLLM find it.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_loading import load_base, quantised
from eval.rendering.ends import named_stops, stop_ids
from eval.rendering.tokenizer import load_tokenizer, template_file
from mosaic.app.bases import HUB, base_folder, hub_name, is_hub_name
from mosaic.app.config import RunConfig
from mosaic.app.rendering import base_identity
from mosaic.core.errors import UsageError
from mosaic.core.store import MANIFEST
from mosaic.core.types.base import JsonObject
from training.methods.hf import loading_of
from training.models.adapter import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECIPE = "recipe.json"
# The files of a tokenizer and its chat template, in the forms that transformers writes.
TOKENIZER = (
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
TEMPLATES = "additional_chat_templates"


def base_name(config: RunConfig) -> tuple[str, str | None]:
    """How the base is called outside of the run, and its revision: the hub's name, or the folder.

    `base_model_name` of the config stands before the folder, and before a name of the hub.
    """
    named = config.base_model_name or config.base_model
    by_name = config.base_model_name is not None or is_hub_name(named, Path.cwd())
    if by_name and HUB.fullmatch(named):
        name, revision = hub_name(named)
        return name, revision if "@" in named else None
    return named, None


def export_adapter(adapter: Path, config: RunConfig, base_digest: str, out: Path) -> None:
    """Copy an adapter with its base's name in its config, the tokenizer and the recipe.

    `AutoPeftModelForCausalLM.from_pretrained(out)` then loads base and adapter. Raises UsageError
    if the base is not at hand, or is another one by now.
    """
    base = same_base(config, base_digest)
    shutil.copytree(adapter, out, ignore=shutil.ignore_patterns(MANIFEST))
    name, revision = base_name(config)
    settings = json.loads((out / CONFIG).read_text())
    settings |= {"base_model_name_or_path": name, "revision": revision}
    write_json(out / CONFIG, settings)
    copy_tokenizer(base, out, config.template)
    recipe: JsonObject = {
        "recipe": config.recipe.json_data(),
        **(
            {"stages": {k: r.json_data() for k, r in config.later_recipes.items()}}
            if config.later_recipes
            else {}
        ),
        "base_model": name,
        "revision": revision,
        "base_digest": base_digest,
        "tokens_per_round": config.budget.tokens_per_round,
        "seed": config.seed,
    }
    write_json(out / RECIPE, recipe)


def same_base(config: RunConfig, digest: str) -> Path:
    """The base's folder. Raises UsageError if it is gone, or holds another model than the run's."""
    base = base_folder(config.base_model)
    if base_identity(base, config.template) != digest:
        raise UsageError(
            f"base_model: {config.base_model} is not the model that the run was trained on (its "
            f"digest is not {digest[:16]}); put that one back"
        )
    return base


def copy_tokenizer(base: Path, out: Path, template: Path | None) -> PreTrainedTokenizerBase:
    """Copy the tokenizer's files, with the chat template as the run rendered it; the tokenizer.

    That is `template` if the config names one, with the dates and options that the run pinned.
    """
    for pattern in TOKENIZER:
        for path in base.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, out / path.name)
    if (base / TEMPLATES).is_dir():
        shutil.copytree(base / TEMPLATES, out / TEMPLATES)
    tokenizer = load_tokenizer(base, template)
    template_file(base, tokenizer, out)
    return tokenizer


def merge(adapter: Path, config: RunConfig, base_digest: str, out: Path) -> None:
    """Write base and adapter as one ordinary model, in the recipe's number format.

    A base in 4 bits is dequantised first: the adapter was trained beside those weights. Raises
    UsageError if the base is not at hand.
    """
    from peft import PeftModel
    from transformers import GenerationConfig
    from transformers.utils import logging

    base, recipe = same_base(config, base_digest), config.recipe
    logging.disable_progress_bar()
    model = load_base(base, recipe.dtype, loading_of(recipe))
    if quantised(base, loading_of(recipe)):
        model = model.dequantize()
    with warnings.catch_warnings():
        # transformers and PEFT warn of each other's names.
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    # transformers refuses to save settings of sampling beside greedy decoding; the base's own file
    # is copied as it stands.
    merged.generation_config = GenerationConfig()
    merged.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", out / "generation_config.json")
    tokenizer = copy_tokenizer(base, out, config.template)
    _name_stops(base, tokenizer, out / "generation_config.json")


def _name_stops(base: Path, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Name every end of a turn that was taught, so that whoever serves the model stops there."""
    stops = stop_ids(base, tokenizer)
    if stops == named_stops(base, tokenizer):
        return
    settings: JsonObject = json.loads(path.read_text()) if path.is_file() else {}
    settings["eos_token_id"] = [*stops]
    write_json(path, settings)


def write_json(path: Path, data: JsonObject) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
