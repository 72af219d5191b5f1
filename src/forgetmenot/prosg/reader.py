"""Reading a stored state at every token, and adding what is read to a mixer's output."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from forgetmenot.prosg.apply import Hook
from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.generator import Generator
from forgetmenot.prosg.readout import Layout, Read


class Reader(nn.Module):
    """sigmoid(w_g x) * W_out read(S, x), for one block, with queries of its own.

    A matrix is read as linear attention reads its state: M_h q_h with q = W_q x. Vectors are read
    as RWKV-4 reads its own: sigmoid(W_q x) * W_s S. Every token does so `reads` times, and what is
    read is joined; `normed` normalises it.
    """

    def __init__(self, layout: Layout, hidden: int, reads: int, normed: bool) -> None:
        super().__init__()
        self.layout, self.reads = layout, reads
        self.query = nn.Linear(hidden, reads * (layout.heads * layout.key or hidden), bias=False)
        stored = layout.parts * layout.width
        self.vectors = None if layout.heads else nn.Linear(stored, reads * hidden)
        self.norm = nn.RMSNorm(layout.value or hidden, eps=1e-6) if normed else None
        self.out = nn.Linear(reads * (layout.heads * layout.value or hidden), hidden, bias=False)
        self.gate = nn.Linear(hidden, 1)

    def reset(self, out: bool) -> None:
        """Linear maps N(0, 1 / fan in), biases and gate zero; W_out too unless `out`.

        Of a gate and a matrix at zero, the matrix learns faster: all it reads adds up.
        """
        for linear in (self.query, self.out, self.vectors, self.gate):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.gate.weight)
        if not out:
            nn.init.zeros_(self.out.weight)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, x_BLD: torch.Tensor, stored: Read) -> torch.Tensor:
        """What is added to the output [B, L, D], in the reader's dtype."""
        x_BLD = x_BLD.to(self.gate.weight.dtype)
        gate_BL1 = self.gate(x_BLD).sigmoid()
        query_BLRQ = self.query(x_BLD).unflatten(-1, (self.reads, -1))
        if self.vectors is None:
            q_BLRHK = query_BLRQ.unflatten(-1, (self.layout.heads, -1))
            read = self._normed(torch.einsum("bhvk,blrhk->blrhv", stored.matrix_BHVK, q_BLRHK))
            return gate_BL1 * self.out(read.flatten(2))
        assert stored.vectors_BPD is not None
        kept = self.vectors(stored.vectors_BPD.flatten(1)).unflatten(-1, (self.reads, -1))
        return gate_BL1 * self.out((query_BLRQ.sigmoid() * self._normed(kept)[:, None]).flatten(2))

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.norm is None else self.norm(x)


class ReadingGenerator(Generator):
    """An update that is a stored state, one read-out a block, read at every token."""

    readers: nn.ModuleList

    def hooks(self, backbone: Backbone, update: list[Read]) -> list[tuple[nn.Module, Hook]]:
        """One hook a mixer."""
        blocks = zip(backbone.mixers, self.readers, update, strict=True)
        return [(mixer, _add_read(reader, stored)) for mixer, reader, stored in blocks]

    def _make_readers(
        self, backbone: Backbone, layout: Layout, reads: int | None, normed: bool
    ) -> None:
        if not backbone.mixers:
            raise ValueError("mixers: found none; allowed: one module for every block")
        made = [Reader(layout, backbone.hidden, reads or 1, normed) for _ in backbone.mixers]
        self.readers = nn.ModuleList(made)

    def all_readers(self) -> list[Reader]:
        """The readers, typed."""
        return [reader for reader in self.readers if isinstance(reader, Reader)]


def layer_normed(vectors_BPD: torch.Tensor) -> torch.Tensor:
    """Each vector with mean 0 and variance 1."""
    return F.layer_norm(vectors_BPD, vectors_BPD.shape[-1:])


def _add_read(reader: nn.Module, stored: Read) -> Hook:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        y_BLD = output[0] if isinstance(output, tuple) else output
        y_BLD = y_BLD + reader(args[0], stored).to(y_BLD.dtype)
        return (y_BLD, *output[1:]) if isinstance(output, tuple) else y_BLD

    return hook
