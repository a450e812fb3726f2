"""What every kind of step is written as, and answers that are filed."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from mosaic.core.types.base import FrozenModel, digest_of

R = TypeVar("R", bound=FrozenModel)


class StepInputs(FrozenModel, Generic[R]):
    """What a step depends on. `version` goes up when the code behind the step gives other results."""

    result_type: ClassVar[type[FrozenModel]]
    kind: str
    version: int = 1

    @property
    def key(self) -> str:
        """The step's identity: SHA-256 over kind, version and inputs."""
        return digest_of(self.json_data())


class Generated(FrozenModel):
    """A filed shard of responses."""

    responses: str
    tokens: int
    conversations: int
