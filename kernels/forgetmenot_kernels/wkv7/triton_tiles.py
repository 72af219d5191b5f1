# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Pieces shared by the Triton kernels of RWKV-7's WKV; notation as in README.md.

A program works on one chunk of C = 64 tokens of one head. Tensors are [tokens, H, D], contiguous,
all sequences one after another on the token axis.
"""

import triton
import triton.language as tl

from forgetmenot_kernels.gated_delta_rule.triton_tiles import load_tile


@triton.jit
def load_float(ptr, row, count, d0, C: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """`load_tile` in float32."""
    return load_tile(ptr, row, count, d0, C, D, BD).to(tl.float32)


@triton.jit
def load_log_decay(ptr, row, count, d0, C: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """`load_tile` in float32; exp(-120) is 0 there, and sums of infinities would be undefined."""
    return tl.maximum(load_float(ptr, row, count, d0, C, D, BD), -120.0)


@triton.jit
def earlier(C: tl.constexpr):
    """[C, C]: 1 at (i, j) for j < i, else 0."""
    t = tl.arange(0, C)
    return (t[:, None] > t[None, :]).to(tl.float32)


@triton.jit
def later(C: tl.constexpr):
    """[C, C]: 1 at (i, j) for j > i, else 0."""
    t = tl.arange(0, C)
    return (t[:, None] < t[None, :]).to(tl.float32)


@triton.jit
def first_round(w, C: tl.constexpr, LEAF: tl.constexpr):
    """The first of the rounds in which pairs of tokens meet: LEAF - 1 for mild decays, else 0.

    Mild is what decays by less than exp(-40) in blocks of 2^LEAF tokens: then their pairs may meet
    all at once, as weights up to exp(20) are safe.
    """
    t = tl.arange(0, C)
    same = (t[:, None] >> LEAF) == (t[None, :] >> LEAF)
    total = tl.dot(same.to(tl.float32), w, input_precision="tf32")
    return tl.where(tl.min(tl.min(total, 1), 0) > -40.0, LEAF - 1, 0)


@triton.jit
def meeting(number, first, C: tl.constexpr, LEAF: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Who meets in this round: whether (i, j) do, and matrices [C, C] that sum w to log weights.

    The log weights of rows i and columns j add up to the sum of w between j and i. In round n,
    blocks of 2^n tokens meet the ones before them, weighted by the decay from j to their border
    and from the border to i. Round LEAF - 1, if it is the first, is that of all pairs in blocks of
    2^LEAF tokens, weighted by the decay from and to the blocks' centres.
    """
    t = tl.arange(0, C)
    i = t[None, :] if TRANSPOSED else t[:, None]
    j = t[:, None] if TRANSPOSED else t[None, :]
    half = i >> number
    border = (half | 1) << number
    to_border = tl.where(i >= border, (j >= border) & (j < i), (j > i) & (j < border))
    to_border = to_border.to(tl.float32)
    across = (half == (j >> number) + 1) & (half % 2 == 1)
    leaf = (number == LEAF - 1) & (first == LEAF - 1)
    same = (i >> LEAF) == (j >> LEAF)
    to_centre = tl.where(same, tl.where(j < i, 0.5, -0.5), 0.0)
    from_centre = tl.where(same, tl.where(j > i, 0.5, -0.5), 0.0)
    pair = tl.where(leaf, same & (j < i), across)
    return pair, tl.where(leaf, to_centre, to_border), tl.where(leaf, from_centre, to_border)
