"""The gated delta rule through Triton: buffers, launches and the autograd function."""

from collections.abc import Hashable
from typing import Any

import torch
import triton

from forgetmenot_kernels.gated_delta_rule.triton_backward import dstates_kernel, recompute_kernel
from forgetmenot_kernels.gated_delta_rule.triton_config import CHUNK, launches
from forgetmenot_kernels.gated_delta_rule.triton_forward import (
    output_kernel,
    solve_kernel,
    states_kernel,
)
from forgetmenot_kernels.gated_delta_rule.triton_gradients import (
    output_gradient_kernel,
    solve_gradient_kernel,
)
from forgetmenot_kernels.gated_delta_rule.triton_norm import unit_length, unit_length_gradient
from forgetmenot_kernels.launching import KernelLaunch, launch_all
from forgetmenot_kernels.packing import Packing

Places = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    qk_l2norm: bool,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    packing: Packing | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the public `gated_delta_rule`, for arguments it has checked.

    Raises TypeError for float64 and ValueError for K or V above 256.
    """
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    if dtype == torch.float64:
        raise TypeError("q, k, v: found float64; allowed with triton: float32, float16, bfloat16")
    for name, width in (("q", q.shape[-1]), ("v", v.shape[-1])):
        if width > 256:
            raise ValueError(f"{name}: found width {width}; allowed with triton: at most 256")
    places = chunk_places(packing) if packing else None
    o, final = _Rule.apply(
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        g.contiguous(),
        beta.contiguous(),
        initial_state,
        places,
        scale,
        qk_l2norm,
        output_final_state,
    )
    return o.to(v.dtype), final


def chunk_places(packing: Packing) -> Places:
    """Borders [N + 1]; first token and tokens left of each chunk [chunks, 2]; each document's
    first chunk [N]. The number of chunks is an upper bound (the host does not know the true one);
    chunks too many have no tokens left.
    """
    chunks_N = (packing.lengths_N + CHUNK - 1) // CHUNK
    ends_N = chunks_N.cumsum(0)
    total = len(packing.row_T) // CHUNK + packing.documents
    chunk = torch.arange(total, device=ends_N.device)
    document = torch.searchsorted(ends_N, chunk, right=True).clamp(max=packing.documents - 1)
    start = (chunk - (ends_N - chunks_N)[document]) * CHUNK
    places = (packing.cu_seqlens[document] + start, packing.lengths_N[document] - start)
    return packing.cu_seqlens, torch.stack(places, 1), ends_N - chunks_N


def token_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """X [B, T, H, D], or a copy of it, with heads side by side, and the distance of tokens."""
    heads, width = x.shape[2:]
    if x.stride(3) == 1 and (heads == 1 or x.stride(2) == width):
        if x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1):
            return x, x.stride(1)
        if x.shape[1] == 1:
            return x, x.stride(0)
    return x.contiguous(), heads * width


class _Rule(torch.autograd.Function):
    """Saves the inputs, the decays and the inverses X; w, u and the states are computed anew."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial: torch.Tensor | None,
        places: Places | None,
        scale: float,
        qk_l2norm: bool,
        output_final_state: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.cuda.device_of(q):
            (q, q_row), (k, k_row), (v, v_row) = token_rows(q), token_rows(k), token_rows(v)
            normalise: list[KernelLaunch] = []
            inverses: tuple[torch.Tensor, ...] = ()
            if qk_l2norm:
                launch, (q, k, *norms) = unit_length(q, k, q_row, k_row)
                normalise.append(launch)
                inverses, q_row, k_row = tuple(norms), q.stride(1), k.stride(1)
            sizes = _Sizes(q, v, places)
            initial = initial.contiguous() if initial is not None else None
            decay, X = sizes.new(torch.float64), sizes.new(q.dtype, CHUNK)
            w, u = sizes.new(q.dtype, sizes.key_dim), sizes.new(q.dtype, sizes.value_dim)
            precision = "tf32" if q.dtype == torch.bfloat16 else "tf32x3"
            solve = KernelLaunch(
                solve_kernel,
                sizes.grid,
                (k, v, g, beta, decay, X, w, u, sizes.places, sizes.time, k_row, v_row),
                {"INVERSE_PRECISION": precision, **sizes.options("solve")},
            )
            walk, states, written, final = sizes.states(
                k, w, u, decay, initial, k_row, output_final_state
            )
            o = sizes.new(v.dtype, sizes.value_dim)
            options = sizes.options("output")
            output = KernelLaunch(
                output_kernel,
                (*sizes.grid, triton.cdiv(sizes.value_dim, options["BV"])),
                (q, k, written, states, decay, o, sizes.places, scale, sizes.time, q_row, k_row),
                options,
            )
            launch_all([*normalise, solve, walk, output], sizes.variant(g, beta, initial, final))
        ctx.save_for_backward(q, k, v, beta, decay, X, initial, *inverses)
        ctx.places, ctx.scale, ctx.rows = places, scale, (q_row, k_row, v_row)
        ctx.g_dtype = g.dtype
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, do: torch.Tensor | None, dfinal: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        q, k, v, beta, decay, X, initial, *inverses = ctx.saved_tensors
        q_row, k_row, v_row = ctx.rows
        sizes, scale, dtype = _Sizes(q, v, ctx.places), ctx.scale, q.dtype
        places, time, K, V = sizes.places, sizes.time, sizes.key_dim, sizes.value_dim
        with torch.cuda.device_of(q):
            do = torch.zeros_like(v) if do is None else do.contiguous()
            w, u, local = sizes.new(dtype, K), sizes.new(dtype, V), sizes.new(dtype, V)
            recompute = KernelLaunch(
                recompute_kernel,
                sizes.grid,
                (q, k, v, beta, decay, X, do, w, u, local, places, scale, time, *ctx.rows),
                sizes.options("recompute"),
            )
            walk, states, written, _ = sizes.states(k, w, u, decay, initial, k_row, False)
            dwritten, dstates = sizes.new(dtype, V), torch.empty_like(states)
            dinitial = torch.empty_like(initial) if ctx.needs_input_grad[5] else None
            dfinal = dfinal.contiguous() if dfinal is not None else None
            options = sizes.options("dstates")
            given = {"HAS_DFINAL": dfinal is not None, "HAS_DINITIAL": dinitial is not None}
            walk_back = KernelLaunch(
                dstates_kernel,
                (triton.cdiv(V, options["BV"]) * sizes.heads * sizes.sequences,),
                (
                    q, k, w, decay, do, dfinal, local, dwritten, dstates, dinitial, *sizes.borders,
                    scale, time, q_row, k_row,
                ),
                {**given, **options},
            )  # fmt: skip
            dq, dk_part, dw = (sizes.new(dtype, K) for _ in range(3))
            dg_part = sizes.new(torch.float32)
            output_gradient = KernelLaunch(
                output_gradient_kernel,
                sizes.grid,
                (
                    q, k, written, states, dstates, decay, do, dwritten, dq, dk_part, dw, dg_part,
                    places, scale, time, q_row, k_row,
                ),
                sizes.options("output_gradient"),
            )  # fmt: skip
            dk, dv = sizes.new(dtype, K), sizes.new(dtype, V)
            dg, dbeta = sizes.new(ctx.g_dtype), sizes.new(beta.dtype)
            solve_gradient = KernelLaunch(
                solve_gradient_kernel,
                sizes.grid,
                (
                    k, v, beta, decay, X, w, u, dw, dwritten, dk_part, dg_part, dk, dv, dg, dbeta,
                    places, time, k_row, v_row,
                ),
                sizes.options("solve_gradient"),
            )  # fmt: skip
            normalise: list[KernelLaunch] = []
            if inverses:
                launch, (dq, dk) = unit_length_gradient((q, k), inverses, (dq, dk))
                normalise.append(launch)
            launch_all(
                [recompute, walk, walk_back, output_gradient, solve_gradient, *normalise],
                sizes.variant(dg, beta, initial, dfinal, dinitial),
            )
        return dq, dk, dv, dg, dbeta, dinitial, None, None, None, None


class _Sizes:
    """Extents of one call, and what the launches of both passes share."""

    def __init__(self, q: torch.Tensor, v: torch.Tensor, places: Places | None) -> None:
        batch, self.time, self.heads, self.key_dim = q.shape
        self.value_dim, self.device, self.dtype = v.shape[-1], q.device, q.dtype
        self.lead = (batch, self.time, self.heads)
        self.varlen = places is not None
        self.places: torch.Tensor | None = None
        self.borders: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self.sequences, chunks = batch, batch * triton.cdiv(self.time, CHUNK)
        if places is not None:
            self.sequences, chunks = len(places[2]), len(places[1])
            self.places, self.borders = places[1], (places[0], places[2])
        self.chunks, self.grid = chunks, (chunks * self.heads,)

    def new(self, dtype: torch.dtype, *width: int) -> torch.Tensor:
        """An unfilled [B, T, H, *width]."""
        return torch.empty(*self.lead, *width, dtype=dtype, device=self.device)

    def options(self, kernel: str) -> dict[str, Any]:
        """What every launch of this kernel is given by name."""
        launch = launches(self.key_dim, self.value_dim, self.dtype.itemsize, self.device)[kernel]
        precision = "tf32x3" if self.dtype == torch.float32 else "tf32"
        shape = {"H": self.heads, "K": self.key_dim, "V": self.value_dim, "C": CHUNK}
        return {**shape, **launch.options, "VARLEN": self.varlen, "PRECISION": precision}

    def variant(self, *tensors: torch.Tensor | None) -> tuple[Hashable, ...]:
        """What decides how kernels are compiled; `tensors` may be left out or have own dtypes."""
        dtypes = (None if x is None else x.dtype for x in tensors)
        widths = (self.heads, self.key_dim, self.value_dim)
        return self.device, self.dtype, self.varlen, *widths, *dtypes

    def states(
        self,
        k: torch.Tensor,
        w: torch.Tensor,
        u: torch.Tensor,
        decay: torch.Tensor,
        initial: torch.Tensor | None,
        k_row: int,
        output_final_state: bool,
    ) -> tuple[KernelLaunch, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The launch that fills what follows it here: the states before each chunk, what each
        token wrote, and the last states (float32).
        """
        memory = (self.heads, self.key_dim, self.value_dim)
        states = torch.empty(self.chunks, *memory, dtype=self.dtype, device=self.device)
        written, final = torch.empty_like(u), None
        if output_final_state:
            final = torch.empty(self.sequences, *memory, device=self.device)
        options = self.options("states")
        given = {"HAS_INITIAL": initial is not None, "HAS_FINAL": final is not None}
        launch = KernelLaunch(
            states_kernel,
            (triton.cdiv(self.value_dim, options["BV"]) * self.heads * self.sequences,),
            (
                k, w, u, decay, initial, states, written, final, *self.borders, self.time, k_row,
            ),
            {**given, **options},
        )  # fmt: skip
        return launch, states, written, final
