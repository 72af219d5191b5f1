"""The registry has every operator, with its forms, documents and tests, and inputs that fit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetmenot_kernels.registry import OPS, ROOT, Op, leaves, op_named
from forgetmenot_kernels.registry_inputs import lte_pairs

TESTS = Path(__file__).parent
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/api.py"))
each = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_operator_is_registered_documented_and_tested(folder: str) -> None:
    ops = [op for op in OPS if op.folder == folder]
    assert ops, f"{folder}: found no entry in registry.py"
    readme = ops[0].readme.read_text(encoding="utf-8")
    names = [path.name for path in TESTS.glob(ops[0].test_pattern)]
    assert f"test_{folder}.py" in names
    for form in ops[0].forms:
        assert f"`{form}`" in readme, f"{ops[0].readme}: says nothing of {form}"
    for op in ops:
        kernels = list(op.readme.parent.glob("triton_*.py"))
        assert ("triton" in op.forms) == any(kernels)
        assert ("triton" in op.forms) <= any(name.endswith("_triton.py") for name in names)


def test_entries_belong_to_operators() -> None:
    assert {op.folder for op in OPS} == set(FOLDERS)
    assert len({op.name for op in OPS}) == len(OPS)
    assert op_named("wkv4").folder == "wkv4"
    with pytest.raises(ValueError, match="op: found 'wkv'; allowed: lte_attention, "):
        op_named("wkv")


@each
def test_forms_are_those_that_the_operator_takes(op: Op) -> None:
    with pytest.raises(ValueError, match="impl: found '\\?'") as error:
        op.call(op.inputs("tiny"), "?")
    allowed = re.search("allowed: (.*)", str(error.value))
    assert allowed
    assert sorted(allowed[1].split(", ")) == sorted(op.forms)


def tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [x for part in result if part is not None for x in tensors(part)]


@each
def test_forms_agree_and_the_first_is_the_default(op: Op) -> None:
    results = []
    forms = [form for form in op.forms if form != "triton"]
    for form in (None, *forms):
        results.append(tensors(op.call(op.inputs("tiny", dtype=torch.float64), form)))
    for x, y in zip(results[0], results[1], strict=True):
        assert torch.equal(x, y)
    for other in results[2:]:
        for x, y in zip(other, results[1], strict=True):
            torch.testing.assert_close(x, y)


@each
def test_work_is_counted(op: Op) -> None:
    inputs = op.inputs("tiny")
    result = op.call(inputs)
    work = op.work("tiny", inputs, result)
    assert work.flops >= 0
    assert work.bytes > sum(x.nbytes for x in tensors(result))
    if op.backward:
        assert work.both_flops > 2 * work.flops > 0
        assert work.both_bytes > work.bytes + sum(x.nbytes for x in leaves(inputs))
        for x in leaves(inputs):
            x.requires_grad_()
        loss = sum(x.double().sum() for x in tensors(op.call(inputs)))
        grads = torch.autograd.grad(loss, leaves(inputs))
        assert all(torch.isfinite(grad).all() for grad in grads)
    else:
        assert work.both_flops == work.flops


def test_pairs_are_those_of_the_mask() -> None:
    time, window = 30, 7
    until = torch.randint(0, 2, (2, time, 3)) * torch.randint(0, 2 * time, (2, time, 3))
    i, j = torch.arange(time)[:, None], torch.arange(time)
    seen = (j <= i) & ((i - j < window) | (i < until.mT[:, :, None]))
    assert lte_pairs(time, window, until) == seen.sum()
