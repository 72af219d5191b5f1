"""What is read of each backbone's state (construction 6.1)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot.model import build
from forgetmenot.prosg.readout import Layout, Read, layout_of, read_state, unit_heads

Make = Callable[..., Any]
LAYOUTS = {
    "rwkv4": Layout(parts=4, width=12),
    "rwkv7": Layout(2, 12, heads=2, value=6, key=6),
    "retnet": Layout(heads=2, value=8, key=4),
    "gdn": Layout(heads=2, value=6, key=4),
}


def test_layouts(backbone: str, plain: Make, prompt_BP: torch.Tensor) -> None:
    reads = read_state(plain(backbone)(prompt_BP).state.layers)
    assert len(reads) == 2
    assert layout_of(reads) == LAYOUTS[backbone]


def test_matrices_have_unit_heads_with_the_value_axis_first(
    backbone: str, plain: Make, prompt_BP: torch.Tensor
) -> None:
    state = plain(backbone)(prompt_BP).state
    matrix = read_state(state.layers)[1].matrix_BHVK
    if backbone == "rwkv4":
        assert matrix is None
        return
    memory = state.layers[2]
    expected = memory.memory_BHVK if backbone == "rwkv7" else memory.memory_BHKV.mT
    scale = expected.square().mean((2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(matrix, expected / scale)


def test_rwkv4_reads_the_mean_and_the_log_mass_of_the_values(
    plain: Make, prompt_BP: torch.Tensor
) -> None:
    state = plain("rwkv4")(prompt_BP).state
    time, channel = state.layers[:2]
    vectors = read_state(state.layers)[0].vectors_BPD
    mean, mass, x_att, x_ffn = vectors.unbind(1)
    torch.testing.assert_close(mass.exp(), time.wkv.b * time.wkv.p.exp())
    torch.testing.assert_close(mean * time.wkv.b, time.wkv.a)
    assert torch.equal(x_att, time.x_BD)
    assert torch.equal(x_ffn, channel.x_BD)


def test_an_empty_matrix_reads_as_zero_with_finite_gradients() -> None:
    memory = torch.zeros(1, 2, 3, 4, requires_grad=True)
    read = unit_heads(memory)
    read.sum().backward()
    assert torch.equal(read, torch.zeros_like(read))
    assert torch.isfinite(memory.grad).all()


def test_the_read_out_is_float32_for_half_precision_states(
    backbone: str, plain: Make, prompt_BP: torch.Tensor
) -> None:
    for read in read_state(plain(backbone).bfloat16()(prompt_BP).state.layers):
        assert all(part.dtype == torch.float32 for part in read.tensors())


def test_a_state_that_is_not_recurrent_is_refused(plain: Make) -> None:
    layers = [["attention", {"heads": 2, "kv_heads": 2, "head_dim": 6}], ["swiglu", {"width": 8}]]
    spec = {**plain("gdn").spec, "layers": layers, "prosg": {}}
    with pytest.raises(TypeError, match=r"state: found forgetmenot\.mixers.*; allowed: a recurre"):
        build(spec)


def test_blocks_of_different_shapes_are_refused() -> None:
    reads = [Read(torch.zeros(1, 2, 3)), Read(torch.zeros(1, 2, 4))]
    with pytest.raises(ValueError, match=r"read-out: found Layout\(.*width=3.*allowed: one layout"):
        layout_of(reads)
