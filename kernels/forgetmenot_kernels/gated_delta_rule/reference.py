"""The gated delta rule: its definition as a loop over time, and the chunked form in plain PyTorch.

Shape suffixes: B batch, T time, H heads, K key width, V value width, N chunks, C tokens of a chunk.
"""

import torch
import torch.nn.functional as F

CHUNK = 16  # of 16, 32 and 64 the fastest on CPUs, for keys 8 to 16 and values 16 to 32 wide


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype sums and states are held in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def unit_length(x: torch.Tensor) -> torch.Tensor:
    """X / sqrt(|x|^2 + 1e-6) over the last dimension, in float32 or wider."""
    x = x.to(working_dtype(x))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def recurrent(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    g_BTH: torch.Tensor,
    beta_BTH: torch.Tensor,
    scale: float,
    initial_state_BHKV: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step a token, as the definition reads: the oracle of the tests."""
    state = initial_state_BHKV
    if state is None:
        batch, _, heads, key_dim = q_BTHK.shape
        state = q_BTHK.new_zeros(batch, heads, key_dim, v_BTHV.shape[-1])
    state = state.to(working_dtype(q_BTHK))
    outputs = []
    for q, k, v, g, beta in zip(
        *(x.unbind(1) for x in (q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH)), strict=True
    ):
        o, state = step(q, k, v, g, beta, scale, state)
        outputs.append(o)
    return torch.stack(outputs, 1), state


def step(
    q_BHK: torch.Tensor,
    k_BHK: torch.Tensor,
    v_BHV: torch.Tensor,
    g_BH: torch.Tensor,
    beta_BH: torch.Tensor,
    scale: float,
    state_BHKV: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token; output and new state in the state's dtype. Differentiable: the state is kept."""
    q, k, v, g, beta = (x.to(state_BHKV.dtype) for x in (q_BHK, k_BHK, v_BHV, g_BH, beta_BH))
    decayed = state_BHKV * g.exp()[..., None, None]
    read_BH1V = k[..., None, :] @ decayed
    write_BH1V = beta[..., None, None] * (v[..., None, :] - read_BH1V)
    state = torch.addcmul(decayed, k[..., None], write_BH1V)
    return (scale * q[..., None, :] @ state).squeeze(-2), state


def chunked(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTHV: torch.Tensor,
    g_BTH: torch.Tensor,
    beta_BTH: torch.Tensor,
    scale: float,
    initial_state_BHKV: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks of 16 tokens: inside a chunk the writes solve one unit-triangular system.

    Decays only ever enter as exp of differences that are at most 0, so nothing overflows.
    """
    dtype = working_dtype(q_BTHK)
    batch, time, heads, key_dim = q_BTHK.shape
    size = min(CHUNK, time)
    chunks = -(-time // size)

    def split(x: torch.Tensor) -> torch.Tensor:
        """[B, T, H, ...] to [B, H, N, C, ...]; padding has beta 0 and g 0: it changes nothing."""
        x = x.to(dtype)
        if chunks * size != time:
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, chunks * size - time))
        # in memory, too: products of matrices whose rows and columns lie apart are slow
        return x.unflatten(1, (chunks, size)).movedim(3, 1).contiguous()

    q, k, v = split(q_BTHK) * scale, split(k_BTHK), split(v_BTHV)
    g_BHNC, beta = split(g_BTH).cumsum(-1), split(beta_BTH)[..., None]
    within = g_BHNC[..., :, None] - g_BHNC[..., None, :]
    causal = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    decay_BHNCC = within.masked_fill(~causal, -torch.inf).exp()
    decay_in, decay_out = g_BHNC.exp()[..., None], (g_BHNC[..., -1:] - g_BHNC).exp()[..., None]

    # the diagonal is ignored: the system is unit-triangular
    system = (beta * k @ k.mT) * decay_BHNCC
    right = torch.cat((beta * v, beta * k * decay_in), -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    new_values, reads = solved.split((v.shape[-1], key_dim), -1)
    scores = (q @ k.mT) * decay_BHNCC
    q_decayed, k_decayed = q * decay_in, k * decay_out
    total_BHN = g_BHNC[..., -1].exp()

    state = initial_state_BHKV
    if state is None:
        state = q.new_zeros(batch, heads, key_dim, v.shape[-1])
    state = state.to(dtype)
    # Only what needs the state before stays in the loop. Chunks are taken apart by unbind: the
    # gradient of an index would be as large as all chunks together.
    before, written = [], []
    for new_n, reads_n, k_n, total_n in zip(
        *(x.unbind(2) for x in (new_values, reads, k_decayed.mT, total_BHN[..., None, None])),
        strict=True,
    ):
        before.append(state)
        written.append(new_n - reads_n @ state)
        state = state * total_n + k_n @ written[-1]
    o_BHNCV = q_decayed @ torch.stack(before, 2) + scores @ torch.stack(written, 2)
    return o_BHNCV.flatten(2, 3)[:, :, :time].transpose(1, 2), state
