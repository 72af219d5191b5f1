"""RWKV-7's WKV: its definition as a loop over time, and the chunked form in plain PyTorch.

Shape suffixes: B batch, T time, H heads, K key width, V value width, N chunks, C tokens of a chunk.
"""

import torch
import torch.nn.functional as F

CHUNK = 32  # a power of two


def step(
    r_BHK: torch.Tensor,
    w_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    a_BHK: torch.Tensor,
    b_BHK: torch.Tensor,
    state_BHVK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token; output and new state in the state's dtype. Differentiable: the state is kept."""
    dtype = state_BHVK.dtype
    r, w, k, v, a, b = (x.to(dtype) for x in (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK))
    read_BHV1 = state_BHVK @ a[..., None]
    state = state_BHVK * w.exp()[..., None, :]
    state = state + read_BHV1 * b[..., None, :] + v[..., None] * k[..., None, :]
    return (state @ r[..., None]).squeeze(-1), state


def recurrent(
    r_BTHK: torch.Tensor,
    w_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    a_BTHK: torch.Tensor,
    b_BTHK: torch.Tensor,
    state_BHVK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step a token, as the definition reads: the oracle of the tests."""
    inputs, outputs = (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK), []
    for r, w, k, v, a, b in zip(*(x.unbind(1) for x in inputs), strict=True):
        o, state_BHVK = step(r, w, k, v, a, b, state_BHVK)
        outputs.append(o)
    return torch.stack(outputs, 1), state_BHVK


def chunked(
    r_BTHK: torch.Tensor,
    w_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    a_BTHK: torch.Tensor,
    b_BTHK: torch.Tensor,
    state_BHVK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks of up to 32 tokens: what a chunk reads for `a` solves one unit-triangular system."""
    dtype, time = state_BHVK.dtype, r_BTHK.shape[1]
    size = min(CHUNK, 1 << (time - 1).bit_length())
    chunks = -(-time // size)

    def split(x: torch.Tensor) -> torch.Tensor:
        """[B, T, H, D] to [B, H, N, C, D], filled up with zeros, which change no state."""
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, chunks * size - time))
        return x.unflatten(1, (chunks, size)).movedim(3, 1)

    r, w, k, v, a, b = (split(x) for x in (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK))
    # e^w r reads the state before the token, as a does
    rows = torch.stack((a, w.exp() * r), -2)
    columns = torch.stack((b, k), -2)
    now = torch.stack((torch.zeros_like(columns[..., 0]), (columns * r[..., None, :]).sum(-1)), -2)
    pairs, before, after, total = decayed_products(rows, columns, now, w)
    (ab, ak), (rb, rk) = ((x[..., 0], x[..., 1]) for x in pairs.unbind(-3))

    reads, queries = (rows * before[..., None, :].exp()).unbind(-2)
    b_out, k_out = (columns * after[..., None, :].exp()).unbind(-2)
    right = torch.cat((reads, ak @ v), -1)
    solved = torch.linalg.solve_triangular(-ab, right, upper=False, unitriangular=True)
    reads, read = solved.split((r.shape[-1], v.shape[-1]), -1)
    decay_BHN1K = total.exp()
    outputs = []
    for n in range(chunks):
        read_CV = read[:, :, n] + reads[:, :, n] @ state_BHVK.mT
        inside = rb[:, :, n] @ read_CV + rk[:, :, n] @ v[:, :, n]
        outputs.append(inside + queries[:, :, n] @ state_BHVK.mT)
        written = read_CV.mT @ b_out[:, :, n] + v[:, :, n].mT @ k_out[:, :, n]
        state_BHVK = state_BHVK * decay_BHN1K[:, :, n] + written
    o_BTHV = torch.stack(outputs, 2).flatten(2, 3)[:, :, :time].transpose(1, 2)
    return o_BTHV, state_BHVK


def decayed_products(
    rows: torch.Tensor, columns: torch.Tensor, now: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For tokens i > j of a chunk: sum over K of rows_i columns_j exp(w between them).

    `rows` and `columns` are [..., C, 2, K], the products for i = j (`now`) [..., C, 2, 2], w the
    log decays [..., C, K], C a power of two. Blocks are doubled: each token of a right half meets
    each of its left half across their border, and is multiplied by its own decay since the border,
    the other by its own until it. So no exponent is positive and none is a difference of sums,
    however strong the decay.

    Returns the products [..., C, 2, C, 2], zero for i < j; the log decays before (after) each
    token inside the chunk [..., C, K], and of the whole chunk [..., 1, K].
    """
    before = after = torch.zeros_like(w)[..., None, :]
    total, pairs, size = w[..., None, :], now, 1
    while size < w.shape[-2]:
        before_left, before_right = before[..., 0::2, :, :], before[..., 1::2, :, :]
        after_left, after_right = after[..., 0::2, :, :], after[..., 1::2, :, :]
        row = rows.unflatten(-3, (-1, size))[..., 1::2, :, :, :]
        column = columns.unflatten(-3, (-1, size))[..., 0::2, :, :, :]
        row = (row * before_right[..., None, :].exp()).flatten(-3, -2)
        column = (column * after_left[..., None, :].exp()).flatten(-3, -2)
        corner = row @ column.mT
        upper = torch.cat((pairs[..., 0::2, :, :], torch.zeros_like(corner)), -1)
        lower = torch.cat((corner, pairs[..., 1::2, :, :]), -1)
        pairs = torch.cat((upper, lower), -2)
        total_left, total_right = total[..., 0::2, :, :], total[..., 1::2, :, :]
        before = torch.cat((before_left, before_right + total_left), -2)
        after = torch.cat((after_left + total_right, after_right), -2)
        total, size = total_left + total_right, 2 * size
    pairs = pairs.squeeze(-3).unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    return pairs, before.squeeze(-3), after.squeeze(-3), total.squeeze(-3)
