"""All methods of training, by the kind of their recipe. A method is added here.

A method is a module with its recipe's class (`RECIPE`), and the functions `train` and
`check_recipe`, as in `training.methods.sft`.
"""

from __future__ import annotations

from types import ModuleType

import training.methods.sft as sft

MODULES: tuple[ModuleType, ...] = (
    sft,
)  # fmt: skip
METHODS: dict[str, ModuleType] = {m.RECIPE.model_fields["kind"].default: m for m in MODULES}
