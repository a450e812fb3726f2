"""All methods of training, by the kind of their recipe, in the order in which a trial runs them.

A method is a module with its recipe's class (`RECIPE`), and the functions `train` and
`check_recipe`, as in `training.methods.sft`. A method is added here.
"""

from __future__ import annotations

from types import ModuleType

import training.methods.dpo as dpo
import training.methods.reward_model as reward_model
import training.methods.rl as rl
import training.methods.sft as sft

MODULES: tuple[ModuleType, ...] = (
    sft,
    dpo,
    rl,
)
# A reward model is trained inside a stage of `rl`: a job may ask for it, but it is not an adapter.
HELPERS: tuple[ModuleType, ...] = (reward_model,)


def _by_kind(modules: tuple[ModuleType, ...]) -> dict[str, ModuleType]:
    return {str(m.RECIPE.model_fields["kind"].default): m for m in modules}


METHODS = _by_kind(MODULES)
TRAININGS = _by_kind((*MODULES, *HELPERS))
