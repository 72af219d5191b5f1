"""Retention: its definition as a loop over time, and the chunked form in plain PyTorch.

Shape suffixes: B batch, T time, H heads, K key width, V value width, N chunks, C tokens of a chunk.
`tokens_B` is how many tokens each row has; what follows them is padding that changes no state
(None: all of T).
"""

import torch
import torch.nn.functional as F

CHUNK = 64


def step(
    q_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    log_decay_H: torch.Tensor,
    scale: float,
    state_BHKV: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token; output and new state in the state's dtype. Differentiable: the state is kept."""
    q, k, v, log_decay = (x.to(state_BHKV.dtype) for x in (q_BHK, k_BHK, v_BHV, log_decay_H))
    state = torch.addcmul(
        state_BHKV * log_decay.exp()[:, None, None], k[..., None], v[..., None, :]
    )
    return (scale * q[..., None, :] @ state).squeeze(-2), state


def recurrent(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay_H: torch.Tensor,
    scale: float,
    state_BHKV: torch.Tensor,
    tokens_B: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step a token, as the definition reads: the oracle of the tests."""
    outputs = []
    for t, (q, k, v) in enumerate(
        zip(*(x.unbind(1) for x in (q_BTHK, k_BTHK, v_BTHV)), strict=True)
    ):
        o, after = step(q, k, v, log_decay_H, scale, state_BHKV)
        if tokens_B is not None:
            after = torch.where((t < tokens_B)[:, None, None, None], after, state_BHKV)
        state_BHKV = after
        outputs.append(o)
    return torch.stack(outputs, 1), state_BHKV


def chunked(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay_H: torch.Tensor,
    scale: float,
    state_BHKV: torch.Tensor,
    tokens_B: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks of 64 tokens; decays are exp(log_decay * tokens in between), never inverted."""
    dtype = state_BHKV.dtype
    batch, time = q_BTHK.shape[:2]
    size = min(CHUNK, time)
    chunks = -(-time // size)

    def split(x: torch.Tensor) -> torch.Tensor:
        """[B, T, H, D] to [B, H, N, C, D], filled up with zeros."""
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, chunks * size - time))
        return x.unflatten(1, (chunks, size)).movedim(3, 1)

    q, k, v = split(q_BTHK) * scale, split(k_BTHK), split(v_BTHV)
    if tokens_B is None:
        tokens_B = torch.full((batch,), time, device=q.device)
    starts_N = torch.arange(chunks, device=q.device) * size
    count_BN = (tokens_B[:, None] - starts_N).clamp(0, size)
    place_C = torch.arange(size, device=q.device)
    left_BNC = (count_BN[..., None] - 1 - place_C).clamp(min=0)
    between_CC = (place_C[:, None] - place_C).clamp(min=0)
    causal_CC = place_C[:, None] >= place_C
    log_decay_H11 = log_decay_H.to(dtype)[:, None, None]
    decay_H1CC = ((log_decay_H11 * between_CC).exp() * causal_CC)[:, None]
    decay_in_HC1 = (log_decay_H11 * (place_C[:, None] + 1)).exp()
    decay_out_BHNC = (log_decay_H11 * left_BNC[:, None]).exp()
    total_BHN = (log_decay_H11[..., 0] * count_BN[:, None]).exp()

    inside = ((q @ k.mT) * decay_H1CC) @ v
    written = (k * decay_out_BHNC[..., None]).mT @ v
    outputs = []
    for n in range(chunks):
        outputs.append(inside[:, :, n] + (q[:, :, n] * decay_in_HC1) @ state_BHKV)
        state_BHKV = state_BHKV * total_BHN[:, :, n, None, None] + written[:, :, n]
    o_BTHV = torch.stack(outputs, 2).flatten(2, 3)[:, :, :time].transpose(1, 2)
    return o_BTHV, state_BHKV
