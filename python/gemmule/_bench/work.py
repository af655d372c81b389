"""What one token costs, from a file's header: bytes that must be read and multiplications that must be made.

With the machine's bandwidth and arithmetic peak these give the two efficiencies beside every speed:
  decode   Ed = (weights + cache read) / (seconds * bandwidth)
  prefill  Ep = tokens * multiplications / (seconds * peak), attention not counted
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemmule._inspect import open_header, weights_read

__all__ = ["Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """Of the dense text models. `weight_bytes`: read for one token; `macs`: of a prompt token, without the
    head, which only the last one needs: `head_macs`.
    """

    weight_bytes: int
    macs: int
    head_macs: int

    @classmethod
    def of(cls, path: str) -> Work:
        macs = head_macs = 0
        file = open_header(path)
        tensors = file.tensors()
        tied = not any(name == "output.weight" for name, *_ in tensors)
        for name, _, shape, *_ in tensors:
            embedding = name.startswith("token_embd")
            if name.startswith("per_layer_token_embd") or (embedding and not tied):
                continue  # one row of it is read
            if embedding or name == "output.weight":
                head_macs = math.prod(shape)
            elif len(shape) == 2:
                macs += math.prod(shape)
        return cls(sum(weights_read(file).values()), macs, head_macs)

    def prefill_share(self, tokens_per_second: float, gmac_per_second: float) -> float:
        """Ep."""
        return tokens_per_second * self.macs / (gmac_per_second * 1e9)
