"""Adapters added up: the update is exactly the weighted sum, and what cannot be added is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mosaic.core.errors import TrainingError
from training.models.adapter import CONFIG, WEIGHTS
from training.models.combine import combine_adapters

SETTINGS = {"r": 2, "lora_alpha": 6, "base_model_name_or_path": "sha256:0"}


def adapter(folder, seed, names=("up", "down"), **settings):
    draws = torch.Generator().manual_seed(seed)
    folder.mkdir()
    matrices = {}
    for name in names:
        matrices[f"{name}.lora_A.weight"] = torch.randn(2, 5, generator=draws)
        matrices[f"{name}.lora_B.weight"] = torch.randn(4, 2, generator=draws)
    save_file(matrices, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(SETTINGS | settings))
    return folder


def update(folder, name):
    """(alpha / r) B A in double precision."""
    config, matrices = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    down, up = (matrices[f"{name}.lora_{part}.weight"].double() for part in "AB")
    return config["lora_alpha"] / config["r"] * up @ down


def test_the_update_is_the_weighted_sum(tmp_path):
    parts = {adapter(tmp_path / str(s), s): w for s, w in ((1, 1.5), (2, -0.7), (3, 0.2))}
    combine_adapters(parts, tmp_path / "sum")
    for name in ("up", "down"):
        wanted = sum(weight * update(folder, name) for folder, weight in parts.items())
        error = (update(tmp_path / "sum", name) - wanted).norm() / wanted.norm()
        assert error < 1e-6
    config = json.loads((tmp_path / "sum" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 18)


def test_the_same_parts_give_the_same_bytes(tmp_path):
    parts = {adapter(tmp_path / str(s), s): 0.5 for s in (1, 2)}
    for name in ("one", "two"):
        combine_adapters(parts, tmp_path / name)
    one, two = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("one", "two"))
    assert one == two


def test_it_is_what_peft_calls_cat(tmp_path, tiny_model):
    """Loaded into a model, the sum answers as PEFT's own combination does."""
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from training.models.lora_layout import lora_config, lora_layout

    folders = []
    for seed in (1, 2):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        targets = lora_layout(tiny_model, 2, "all-linear").targets
        adapted = get_peft_model(model, lora_config(2, targets, alpha=4))
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    combine_adapters(dict(zip(folders, (1.2, -0.2), strict=True)), tmp_path / "sum")
    ids = torch.tensor([[1, 2, 3, 4]])
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ours = PeftModel.from_pretrained(base, tmp_path / "sum")(input_ids=ids).logits
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, folders[0], adapter_name="one")
    peft.load_adapter(folders[1], adapter_name="two")
    peft.add_weighted_adapter(["one", "two"], [1.2, -0.2], "both", combination_type="cat")
    peft.set_adapter("both")
    assert torch.allclose(ours, peft(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"lora_alpha": 8}, "lora_alpha"),
        ({"r": 3}, "r is"),
        ({"names": ("up",)}, "other layers"),
    ],
)
def test_adapters_that_are_not_alike_are_refused(tmp_path, other, said):
    parts = {adapter(tmp_path / "1", 1): 0.5, adapter(tmp_path / "2", 2, **other): 0.5}
    with pytest.raises(TrainingError, match=said):
        combine_adapters(parts, tmp_path / "sum")


@pytest.mark.parametrize("setting", ["use_rslora", "rank_pattern"])
def test_ranks_that_scale_otherwise_are_refused(tmp_path, setting):
    parts = {adapter(tmp_path / str(s), s, **{setting: True}): 0.5 for s in (1, 2)}
    with pytest.raises(TrainingError, match="cannot be added up"):
        combine_adapters(parts, tmp_path / "sum")


def test_what_is_not_a_lora_matrix_is_refused(tmp_path):
    folder = adapter(tmp_path / "1", 1)
    save_file({"head.weight": torch.zeros(2, 2)}, folder / WEIGHTS)
    with pytest.raises(TrainingError, match="not a matrix of a LoRA"):
        combine_adapters({folder: 1.0}, tmp_path / "sum")
