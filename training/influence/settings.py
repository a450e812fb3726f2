"""What a config says of the influence of buckets."""

from __future__ import annotations

from pydantic import Field

from mosaic.core.types.base import FrozenModel


class InfluenceConfig(FrozenModel):
    """How the effect of a little more of each bucket is estimated before a round is planned.

    From every bucket rows of about `tokens_per_bucket` tokens are drawn. `damping` is added to the
    curvature of each layer, as a share of the layer's mean second moment. Passes take `batch_size`
    sequences at a time, which changes nothing but memory and time.
    """

    tokens_per_bucket: int = Field(default=2000, ge=1)
    damping: float = Field(default=0.1, gt=0, le=100)
    batch_size: int = Field(default=16, ge=1)
