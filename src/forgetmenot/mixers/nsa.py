"""Native sparse attention (NSA, arXiv 2502.11089), in the LTE paper's form.

Each query attends the means of the blocks before it, the blocks that those means make look most
important, and a window; three gates of the token add the results (`forgetmenot_kernels.nsa`).
"""

from dataclasses import dataclass

import torch

from forgetmenot.mixers.base import Mixed, Place, positions
from forgetmenot.mixers.base import Mixer as Base
from forgetmenot.mixers.nsa_state import State, continued, started, with_room
from forgetmenot.mixers.rotary import rotate
from forgetmenot_kernels.nsa import nsa_attention, nsa_cached_attention, nsa_decode_step
from forgetmenot_kernels.packing import Packing


@dataclass(frozen=True)
class Options:
    """Heads, widths and reach (LTE specification, sections 1.2 and 4.1)."""

    heads: int  # query heads
    kv_heads: int  # key/value heads; the query heads of one choose the same blocks
    head_dim: int  # width of a head, even
    block: int = 64  # tokens of a block, pooled and selected alike
    selected: int = 16  # blocks attended, the forced first, previous and current one included
    window: int = 512  # tokens the window sees, the current one included
    rope_theta: float | None = 10000.0  # base of the rotary angles; null = no positions

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: found {self.kv_heads}; allowed: divisors of {self.heads}")
        for name, least in (("block", 1), ("selected", 3), ("window", 1)):
            if getattr(self, name) < least:
                found = getattr(self, name)
                raise ValueError(f"{name}: found {found}; allowed: at least {least}")


class Mixer(Base):
    """See the module; the maths and how ties fall: kernels/forgetmenot_kernels/nsa/README.md."""

    def __init__(self, place: Place, options: Options) -> None:
        super().__init__(place)
        self.options = o = options
        self.q = self._linear(place.hidden, o.heads * o.head_dim)
        self.k = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.v = self._linear(place.hidden, o.kv_heads * o.head_dim)
        self.gate = self._linear(place.hidden, o.heads * 3)  # of compression, selection, window
        self.out = self._linear(o.heads * o.head_dim, place.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self._reset_linears(self.out)

    def state_bytes(self, length: int) -> int:
        """Keys and values of all tokens and the means of all blocks begun (bytes, float32)."""
        o = self.options
        return 4 * 2 * (length + -(-length // o.block)) * o.kv_heads * o.head_dim

    def flops(self, context: int) -> int:
        """Scores and values of the pooled blocks, of the selected ones and of the window."""
        o = self.options
        pooled = (context + 1) // o.block
        before = context // o.block
        chosen = context % o.block + 1 + min(o.selected - 1, before) * o.block
        near = min(o.window, context + 1)
        return super().flops(context) + 4 * o.heads * o.head_dim * (pooled + chosen + near)

    def mix(
        self, x_BLD: torch.Tensor, state: State | None, packing: Packing | None, need_state: bool
    ) -> Mixed:
        o = self.options
        position_BL = positions(x_BLD, state.kv.length_B if state else None, packing)
        q = rotate(self.q(x_BLD).unflatten(-1, (o.heads, -1)), position_BL, o.rope_theta)
        k = rotate(self.k(x_BLD).unflatten(-1, (o.kv_heads, -1)), position_BL, o.rope_theta)
        v = self.v(x_BLD).unflatten(-1, (o.kv_heads, -1))
        gate = self.gate(x_BLD).unflatten(-1, (o.heads, 3)).sigmoid()
        new_state: State | None = None
        if state is None:
            y = nsa_attention(
                q, k, v, gate, cu_seqlens=packing,
                block=o.block, selected=o.selected, window=o.window,
            )  # fmt: skip
            if need_state:
                new_state = started(k, v, packing, o.block)
        elif x_BLD.shape[1] > 1 or q.requires_grad or state.kv.k_BHCD.requires_grad:
            new_state = continued(state, k, v, o.block)
            cache = new_state.filled(o.block)
            y = nsa_cached_attention(
                q, gate, cache, block=o.block, selected=o.selected, window=o.window
            )
        else:
            new_state = with_room(state, o.block)
            y_BGD = nsa_decode_step(
                q[:, 0], k[:, 0], v[:, 0], gate[:, 0], new_state.cache(),
                block=o.block, selected=o.selected, window=o.window,
            )  # fmt: skip
            y = y_BGD[:, None]
        return self.out(y.flatten(2)), new_state, {}
