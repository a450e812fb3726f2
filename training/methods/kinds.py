"""All methods of training, by the kind of their recipe, in the order in which a trial runs them.

A method is a module with its recipe's class (`RECIPE`), and the functions `train` and
`check_recipe`, as in `training.methods.sft`. A method is added here.
"""

from __future__ import annotations

from types import ModuleType

import training.methods.dpo as dpo
import training.methods.sft as sft

MODULES: tuple[ModuleType, ...] = (
    sft,
    dpo,
)
METHODS: dict[str, ModuleType] = {m.RECIPE.model_fields["kind"].default: m for m in MODULES}
