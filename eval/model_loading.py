"""Loading a base model's weights: one way for training, for generation and for the adapter probe.

What is trained is what will be generated, so all three load a base alike.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_folder import read_json
from eval.model_kind import four_bit
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

NO_BITSANDBYTES = (
    "methods.sft.load_in_4bit: bitsandbytes is not installed; run pip install -e '.[quant]' (or "
    "pip install bitsandbytes), or set it to false"
)


@dataclass(frozen=True)
class Loading:
    """How a base is loaded, beside its number format.

    `attention` is an implementation's name in transformers, None its default for the model.
    With `four_bit` weights are quantised while they are loaded (bitsandbytes NF4, as QLoRA does);
    a folder that is in 4 bits already stays so.
    """

    attention: str | None = None
    four_bit: bool = False


PLAIN = Loading()


def quantised(base: Path, loading: Loading) -> bool:
    """Whether the model will be in 4 bits: as it is loaded, or in its folder already."""
    return loading.four_bit or four_bit(read_json(base / "config.json") or {})


def check_quantisation(base: Path, loading: Loading) -> None:
    """Raise UsageError if a model in 4 bits is wanted and bitsandbytes is missing."""
    if not quantised(base, loading) or importlib.util.find_spec("bitsandbytes"):
        return
    if loading.four_bit:
        raise UsageError(NO_BITSANDBYTES)
    raise UsageError(
        f"base_model: {base} is in bitsandbytes' 4 bits, and bitsandbytes is not installed; run "
        "pip install -e '.[quant]' (or pip install bitsandbytes), or take the model's original "
        "weights"
    )


def check_attention(base: Path, attention: str | None) -> None:
    """Raise UsageError if the base cannot be loaded with this attention implementation here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if attention is None:
        return
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with _attention_to_be_had(attention), torch.device("meta"):
        AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@contextmanager
def _attention_to_be_had(attention: str | None) -> Iterator[None]:
    """Turn transformers' complaint about an attention implementation into a UsageError."""
    try:
        yield
    except (ImportError, ValueError) as error:
        if attention is None:
            raise
        said = str(error).strip().splitlines()[0]
        raise UsageError(
            f"methods.sft.attn_implementation: {attention}: {said} (null takes the default)"
        ) from None


def load_base(
    base: Path, dtype: str, loading: Loading = PLAIN, device: str | None = None
) -> PreTrainedModel:
    """The base model's weights in `dtype` (a name such as float32), from local files only.

    It stays on the CPU unless a `device` is named; in 4 bits it lies on the GPU at once if there
    is one and none is named, since that is where it is quantised.

    Raises UsageError if weights of the model are missing in the folder, which would start at
    random, or if the attention implementation is not to be had.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_quantisation(base, loading)
    settings: dict[str, object] = {"dtype": getattr(torch, dtype), "local_files_only": True}
    if loading.attention:
        settings["attn_implementation"] = loading.attention
    if quantised(base, loading):
        where = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        settings["device_map"] = {"": where}
        if not four_bit(read_json(base / "config.json") or {}):
            settings["quantization_config"] = nf4(dtype)
    elif device:
        settings["device_map"] = {"": device}
    with _attention_to_be_had(loading.attention):
        model, info = AutoModelForCausalLM.from_pretrained(
            base, output_loading_info=True, trust_remote_code=False, **settings
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise UsageError(
            f"base_model: {base}: {len(missing)} weights are missing and would start at random, "
            f"such as {missing[0]}; copy the whole model again, or take one with a language head"
        )
    return model


def nf4(dtype: str) -> BitsAndBytesConfig:
    """QLoRA's settings (arXiv 2305.14314): NF4 with double quantisation, computing in `dtype`."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def free_memory() -> None:
    """Give back what a model that nobody holds any more took of the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
