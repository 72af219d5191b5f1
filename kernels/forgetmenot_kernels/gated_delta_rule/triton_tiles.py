# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Pieces shared by the Triton kernels of the gated delta rule.

A program works on one chunk of C tokens of one head. Tensors are [tokens, H, D] with the given
distance between tokens; all sequences lie one after another on the token axis.
Transposed products are formed from loaded tiles, never by transposing the result of a product:
on Hopper, Triton 3.4 to 3.7.0 can miscompile `tl.dot(tl.trans(x), y)` when x is itself one.
"""

import triton
import triton.language as tl


@triton.jit
def chunk_place(chunk, places_ptr, T, C: tl.constexpr, VARLEN: tl.constexpr):
    """First token (int64) of a chunk and how many tokens are left in its sequence from there."""
    if VARLEN:
        first = tl.load(places_ptr + 2 * chunk)
        count = tl.load(places_ptr + 2 * chunk + 1).to(tl.int32)
    else:
        chunks = (T + C - 1) // C
        start = (chunk % chunks) * C
        first = (chunk // chunks).to(tl.int64) * T + start
        count = T - start
    return first, count


@triton.jit
def load_tile(ptr, row, count, d0, C: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """[C, BD]: rows 0 .. C - 1 and columns d0 .. of a [count, D] matrix, zeros around it."""
    t, d = tl.arange(0, C)[:, None], d0 + tl.arange(0, BD)[None, :]
    return tl.load(ptr + t * row + d, mask=(t < count) & (d < D), other=0.0)


@triton.jit
def store_tile(ptr, x, row, count, d0, C: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """The reverse of `load_tile`, in the memory's dtype."""
    t, d = tl.arange(0, C)[:, None], d0 + tl.arange(0, BD)[None, :]
    tl.store(ptr + t * row + d, x.to(ptr.dtype.element_ty), mask=(t < count) & (d < D))


@triton.jit
def load_row(ptr, row, count, C: tl.constexpr):
    """[C] float32: one number a token, zeros after the last."""
    t = tl.arange(0, C)
    return tl.load(ptr + t * row, mask=t < count, other=0.0).to(tl.float32)


@triton.jit
def load_decay(ptr, row, count, C: tl.constexpr):
    """Log-decay since the chunk's start [C], constant after the last token, and its last value.

    float64: after strong decay, float32 sums would lose the small decays that follow.
    """
    t = tl.arange(0, C)
    last = tl.load(ptr + (tl.minimum(count, C) - 1) * row)
    decay = tl.load(ptr + t * row, mask=t < count, other=0.0)
    return tl.where(t < count, decay, last), last


@triton.jit
def decay_between(decay, C: tl.constexpr):
    """[C, C]: exp(decay_i - decay_j) for i >= j, else 0; never the exp of a positive number."""
    t = tl.arange(0, C)
    high, low = in_two_parts(decay)
    between = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp(tl.where(t[:, None] >= t[None, :], between, float("-inf")))


@triton.jit
def decay_between_transposed(decay, C: tl.constexpr):
    """[C, C]: exp(decay_j - decay_i) for j >= i, else 0."""
    t = tl.arange(0, C)
    high, low = in_two_parts(decay)
    between = (high[None, :] - high[:, None]) + (low[None, :] - low[:, None])
    return tl.exp(tl.where(t[:, None] <= t[None, :], between, float("-inf")))


@triton.jit
def in_two_parts(x):
    """Float64 as the sum of two float32: differences are as exact, with half the registers."""
    high = x.to(tl.float32)
    return high, (x - high.to(tl.float64)).to(tl.float32)


@triton.jit
def decay_to(decay):
    """exp(decay), float32."""
    return tl.exp(decay.to(tl.float32))


@triton.jit
def sum_before(x, C: tl.constexpr):
    """y_i = sum of x_j over j < i; [C]."""
    t = tl.arange(0, C)
    return tl.sum(tl.where(t[:, None] > t[None, :], x[None, :], 0.0), 1)


@triton.jit
def sum_from(x, C: tl.constexpr):
    """y_i = sum of x_j over j >= i; [C]."""
    t = tl.arange(0, C)
    return tl.sum(tl.where(t[:, None] <= t[None, :], x[None, :], 0.0), 1)


@triton.jit
def sum_across(x, C: tl.constexpr):
    """y_i = sum of x_lj over l >= i > j; [C].

    What a product over the decay between j and l gives to the gradient of each g_i in between.
    """
    t = tl.arange(0, C)
    before = tl.cumsum(x, 1) - x
    return tl.sum(tl.where(t[:, None] >= t[None, :], before, 0.0), 0)


@triton.jit
def unit_lower_inverse(A, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I + A)^-1 for a strictly lower triangular float32 A [C, C], C = 64.

    Inverted blocks on the diagonal are joined in pairs until one is left: the corner of
    [[X, 0], [M, Y]]^-1 is -Y^-1 M X^-1. A power series in A would need as many products but loses
    all digits where keys repeat.
    """
    t = tl.arange(0, C)
    corner = (t[:, None] == t[None, :] + 1) & (t[None, :] % 2 == 0)
    X = tl.where(t[:, None] == t[None, :], 1.0, tl.where(corner, -A, 0.0))
    for level in range(1, 6):
        block = t >> level
        corner = (block[:, None] == block[None, :] + 1) & (block[None, :] % 2 == 0)
        MX = tl.dot(tl.where(corner, A, 0.0), X, input_precision=PRECISION)
        X -= tl.dot(X, MX, input_precision=PRECISION)
    return X
