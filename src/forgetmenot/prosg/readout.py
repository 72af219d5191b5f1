"""Reading what a prompt left in an RNN's state, as one vector a layer (construction 6.1)."""

from typing import Any

import torch

from forgetmenot.mixers.rwkv4_channel import State as ChannelState
from forgetmenot.mixers.rwkv4_time import State as TimeState

WIDTH = 4  # quarters of the read-out, each as wide as the model


def read_state(layers: tuple[Any, ...]) -> list[torch.Tensor]:
    """Per block [a / b; log b + p; x_att; x_ffn] [B, 4D], float32 or wider, of an RWKV-4 state.

    a / b is the decayed mean of the values, log b + p the log of its mass: both finite, unlike raw
    a and b. Raises TypeError for the state of another backbone.
    """
    read = []
    for time, channel in zip(layers[0::2], layers[1::2], strict=True):
        if not isinstance(time, TimeState) or not isinstance(channel, ChannelState):
            found = f"{type(time).__module__}, {type(channel).__module__}"
            raise TypeError(f"state: found {found}; allowed: rwkv4_time, rwkv4_channel in turns")
        a, b, p = time.wkv
        quarters = (a / b, b.log() + p, time.x_BD, channel.x_BD)
        wide = torch.promote_types(a.dtype, torch.float32)
        read.append(torch.cat([q.to(wide) for q in quarters], -1))
    return read
