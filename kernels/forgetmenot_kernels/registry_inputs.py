"""Inputs of named shapes for every operator, and the operations that a call counts for.

Flops are those of the fast forms' products, a multiplication and an addition each counted. Sizes
are plain numbers by name; sequences have a "time", steps have none.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

Sizes = Mapping[str, Any]
CHUNK = 64  # tokens of a chunk in the chunked forms
ROOM = 1024  # tokens that a memory of growing size can still take


class Inputs(NamedTuple):
    """What an operator is called with: `op.call(inputs)`."""

    arguments: tuple[Any, ...]  # tensors, or a memory of tensors
    options: dict[str, Any]


class Random:
    """Inputs from one seed, on one device, in one dtype."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._generator, device=self.device).to(self.dtype)

    def unit(self, *shape: int) -> torch.Tensor:
        """Vectors of length 1."""
        x = torch.randn(shape, generator=self._generator, device=self.device)
        return torch.nn.functional.normalize(x, dim=-1).to(self.dtype)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Float32 from [0, 1), whatever the dtype."""
        return torch.rand(shape, generator=self._generator, device=self.device)


def _attention_inputs(random: Random, s: Sizes) -> tuple[torch.Tensor, ...]:
    lead = (s["batch"], s["time"])
    q = random.normal(*lead, s["heads"], s["width"])
    k, v = (random.normal(*lead, s["kv_heads"], s["width"]) for _ in "kv")
    return q, k, v


def lte(random: Random, s: Sizes) -> Inputs:
    """A share of all columns, at random places of each head, stays visible for ever."""
    q, k, v = _attention_inputs(random, s)
    chance = random.uniform(s["batch"], s["time"], s["kv_heads"])
    until = (chance < s["kept"]).int() * s["time"]
    return Inputs((q, k, v, until), {"window": s["window"]})


def lte_pairs(time: int, window: int, until_BTH: torch.Tensor) -> int:
    """Pairs of a query and a column that it sees, over all KV heads."""
    place = torch.arange(time, device=until_BTH.device)
    near = (time - place).clamp(max=window).sum() * until_BTH[:, 0].numel()
    far = (until_BTH.clamp(max=time) - window - place[:, None]).clamp(min=0).sum()
    return int(near + far)


def lte_flops(s: Sizes, inputs: Inputs) -> float:
    """Two products over the visible pairs."""
    pairs = lte_pairs(s["time"], s["window"], inputs.arguments[3])
    return 4.0 * s["width"] * s["heads"] // s["kv_heads"] * pairs


def cap(random: Random, s: Sizes) -> Inputs:
    """Scores of which a share is positive."""
    score = random.uniform(s["batch"], s["time"], s["kv_heads"]) - 1 + s["kept"]
    return Inputs((score,), {"window": s["window"], "sink": 4, "budget": s["budget"]})


def lte_step(random: Random, s: Sizes) -> Inputs:
    """A full memory after `context` tokens, as far as so many fill it."""
    cache_module = importlib.import_module("forgetmenot_kernels.lte_attention.cache")
    batch, heads, window = s["batch"], s["kv_heads"], s["window"]
    q = random.normal(batch, s["heads"], s["width"])
    k, v = (random.normal(batch, heads, s["width"]) for _ in "kv")
    slots = (batch, heads, window + s["budget"])
    score = random.uniform(*slots)
    filled = min(s["budget"], max(0, s["context"] - window))
    place = torch.arange(s["budget"], device=random.device)
    position = torch.where(place < filled, place, -1).expand(batch, heads, -1).contiguous()
    score[..., window:].masked_fill_(position < 0, -math.inf)
    length = torch.full((batch,), s["context"], device=random.device)
    memory = [random.normal(*slots, s["width"]) for _ in "kv"]
    cache = cache_module.Cache(*memory, score, position, length)
    return Inputs((q, k, v, cache), {"window": window, "sink": 4})


def lte_step_flops(s: Sizes, inputs: Inputs) -> float:
    """Two products over all slots."""
    return 4.0 * s["batch"] * s["heads"] * s["width"] * (s["window"] + s["budget"])


def nsa(random: Random, s: Sizes) -> Inputs:
    """Keys and values of few heads, and gates in [0, 1)."""
    q, k, v = _attention_inputs(random, s)
    gate = random.uniform(s["batch"], s["time"], s["heads"], 3).to(random.dtype)
    return Inputs((q, k, v, gate), {name: s[name] for name in ("block", "selected", "window")})


def _nsa_seen(s: Sizes, i: torch.Tensor) -> torch.Tensor:
    """Columns that a query at i attends: pooled, of the selected blocks, and of the window."""
    block = s["block"]
    selected = torch.minimum(i + 1, (s["selected"] - 1) * block + i % block + 1)
    return (i + 1) // block + selected + (i + 1).clamp(max=s["window"])


def nsa_flops(s: Sizes, inputs: Inputs) -> float:
    """Two products over what every query attends."""
    seen = int(_nsa_seen(s, torch.arange(s["time"])).sum())
    return 4.0 * s["batch"] * s["heads"] * s["width"] * seen


def nsa_step(random: Random, s: Sizes) -> Inputs:
    """The memory after `context` tokens, with room for more."""
    nsa = importlib.import_module("forgetmenot_kernels.nsa")
    batch, heads, width, context = s["batch"], s["kv_heads"], s["width"], s["context"]
    q = random.normal(batch, s["heads"], width)
    k, v = (random.normal(batch, heads, width) for _ in "kv")
    gate = random.uniform(batch, s["heads"], 3).to(random.dtype)
    memory = [random.normal(batch, heads, context + ROOM, width) for _ in "kv"]
    for x in memory:
        x[:, :, context:] = 0
    length = torch.full((batch,), context, device=random.device)
    cache = nsa.nsa_cache(*memory, block=s["block"], length_B=length)
    options = {name: s[name] for name in ("block", "selected", "window")}
    return Inputs((q, k, v, gate, cache), options)


def nsa_step_flops(s: Sizes, inputs: Inputs) -> float:
    """Two products over what the query attends."""
    seen = int(_nsa_seen(s, torch.tensor(s["context"])))
    return 4.0 * s["batch"] * s["heads"] * s["width"] * seen


def nsa_step_read(s: Sizes) -> float:
    """Pooled entries are float32; the data are taken as half precision."""
    pooled = s["context"] // s["block"]
    other = int(_nsa_seen(s, torch.tensor(s["context"]))) - pooled
    return 2.0 * s["batch"] * s["kv_heads"] * s["width"] * (4 * pooled + 2 * other)


def _lead(s: Sizes) -> tuple[int, ...]:
    """[B, T, H] of sequences, [B, H] of a step."""
    return tuple(s[name] for name in ("batch", "time", "heads") if name in s)


def delta(random: Random, s: Sizes) -> Inputs:
    """Keys of unit length, decays near 1."""
    lead = _lead(s)
    q, k = (random.unit(*lead, s["key"]) for _ in "qk")
    v = random.normal(*lead, s["value"])
    g, beta = -0.1 * random.uniform(*lead), random.uniform(*lead)
    return Inputs((q, k, v, g, beta, *_state(random, s, "key", "value")), {})


def retention(random: Random, s: Sizes) -> Inputs:
    """RetNet's decays of the heads."""
    lead, heads = _lead(s), s["heads"]
    q, k = (random.normal(*lead, s["key"]) for _ in "qk")
    v = random.normal(*lead, s["value"])
    decay = torch.log1p(-(2.0 ** (-5 - torch.arange(heads, device=random.device))))
    return Inputs((q, k, v, decay, *_state(random, s, "key", "value")), {})


def wkv7(random: Random, s: Sizes) -> Inputs:
    """RWKV-7's range of decays, removal and return along one unit key."""
    lead = _lead(s)
    r, k = (random.normal(*lead, s["key"]) for _ in "rk")
    decay = (-0.606531 * random.uniform(*lead, s["key"])).to(random.dtype)
    v, unit = random.normal(*lead, s["value"]), random.unit(*lead, s["key"])
    rate = random.uniform(*lead, s["key"]).to(random.dtype)
    state = _state(random, s, "value", "key")
    return Inputs((r, decay, k, v, -unit, unit * rate, *state), {})


def _state(random: Random, s: Sizes, rows: str, columns: str) -> tuple[torch.Tensor, ...]:
    """The float32 state of a step; sequences start without."""
    if "time" in s:
        return ()
    return (random.normal(s["batch"], s["heads"], s[rows], s[columns]).float(),)


def wkv4(random: Random, s: Sizes) -> Inputs:
    """Weights near 1."""
    lead = tuple(s[name] for name in ("batch", "time", "width") if name in s)
    k, v = (random.normal(*lead) for _ in "kv")
    decay, bonus = random.uniform(s["width"]), random.uniform(s["width"])
    state: tuple[Any, ...] = ()
    if "time" not in s:
        module = importlib.import_module("forgetmenot_kernels.wkv4")
        a, b, p = (random.uniform(s["batch"], s["width"]) for _ in "abp")
        state = (module.WKV4State(a, b + 0.1, p),)
    return Inputs((k, v, decay, bonus, *state), {})


def conv(random: Random, s: Sizes) -> Inputs:
    """Inputs and taps, and the state of a step."""
    lead = tuple(s[name] for name in ("batch", "time", "width") if name in s)
    x, weight = random.normal(*lead), random.normal(s["width"], s["taps"])
    state = () if "time" in s else (random.normal(s["batch"], s["taps"] - 1, s["width"]),)
    return Inputs((x, weight, *state), {})


def low_rank(random: Random, s: Sizes) -> Inputs:
    """A weight and factors that keep the size of the inputs."""
    batch, inputs, outputs, rank = s["batch"], s["inputs"], s["outputs"], s["rank"]
    x, weight = random.normal(batch, s["time"], inputs), random.normal(outputs, inputs)
    left, right = random.normal(batch, outputs, rank), random.normal(batch, inputs, rank)
    shrink = inputs**-0.5
    scale = torch.ones((), device=random.device)
    return Inputs((x, weight * shrink, left, right * shrink), {"scale": scale})


def chunked_flops(correction: int) -> Callable[[Sizes, Inputs], float]:
    """Products of a chunked form; `correction` = 1 where writes take back what is read."""

    def flops(s: Sizes, inputs: Inputs) -> float:
        key, value = s["key"], s["value"]
        inside = CHUNK * (2 * key + 2 * value) + correction * CHUNK * (4 * key + 2 * value)
        across = (4 + 2 * correction) * key * value
        return float(s["batch"] * s["time"] * s["heads"] * (inside + across))

    return flops


def state_flops(operations: int) -> Callable[[Sizes, Inputs], float]:
    """So many operations a token for each number of the state."""

    def flops(s: Sizes, inputs: Inputs) -> float:
        state = s["width"] if "width" in s else s["heads"] * s["key"] * s["value"]
        return float(operations * s["batch"] * s.get("time", 1) * state)

    return flops


def no_flops(s: Sizes, inputs: Inputs) -> float:
    """Comparisons alone."""
    return 0.0


def conv_flops(s: Sizes, inputs: Inputs) -> float:
    """A product a tap."""
    return 2.0 * s["batch"] * s.get("time", 1) * s["width"] * s["taps"]


def low_rank_flops(s: Sizes, inputs: Inputs) -> float:
    """The shared product and the two narrow ones."""
    width, outputs = s["inputs"], s["outputs"]
    products = width * outputs + s["rank"] * (width + outputs)
    return 2.0 * s["batch"] * s["time"] * products
