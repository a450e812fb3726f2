"""What a run depends on beside its config, and what its journal says of both."""

from __future__ import annotations

from pydantic import Field

from mosaic.core.types.base import FrozenModel, JsonObject


class InputDigests(FrozenModel):
    """What a run depends on beside its config.

    `suites` is objective -> role -> digest; `prompts`, name -> digest, only if a model reads them;
    `objectives`, name -> digest of the rules (a rubric's file, somebody's code); `independent`, name ->
    digest of an independent suite.
    """

    pool: str
    base_model: str
    suites: dict[str, dict[str, str]]
    judge: str
    prompts: dict[str, str] = {}
    objectives: dict[str, str] = {}
    # Left out of what is written if there are none: records of earlier releases stay.
    independent: dict[str, str] = Field(default={}, exclude_if=lambda suites: not suites)


class RunRecord(FrozenModel):
    """What a journal says of its run: the resolved config, and digests of what it names."""

    run: JsonObject
    inputs: InputDigests
