import pytest
import torch
from torch import nn

from forgetmenot.train.optimizer import AdamW
from forgetmenot.train.options import Options


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


def _gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)


def test_it_is_adamw_by_its_formula() -> None:
    model = _model()
    adamw = AdamW(model, Options(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3))
    weight = model[0].weight.detach().double().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 4):
        _gradients(model, step)
        grad = model[0].weight.grad.double()
        adamw.step(0.1)
        mean = 0.8 * mean + 0.2 * grad
        square = 0.9 * square + 0.1 * grad**2
        update = mean / (1 - 0.8**step) / ((square / (1 - 0.9**step)).sqrt() + 1e-3)
        weight = weight - 0.1 * 0.3 * weight - 0.1 * update
    torch.testing.assert_close(model[0].weight.double(), weight, rtol=1e-5, atol=1e-6)


def test_it_is_torchs_adamw_bit_for_bit() -> None:
    one, other = _model(), _model()
    options = Options()
    ours = AdamW(one, options)
    theirs = torch.optim.AdamW(
        [parameter for parameter in other.parameters() if parameter.requires_grad],
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
    for step in range(1, 6):
        _gradients(one, step)
        _gradients(other, step)
        if step == 3:
            one[1].bias.grad = other[1].bias.grad = None
        ours.step(0.1 / step)
        theirs.param_groups[0]["lr"] = 0.1 / step
        theirs.step()
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)
    assert all(parameter.grad is None for parameter in one.parameters())


def test_a_frozen_parameter_has_no_state_and_does_not_move() -> None:
    model = _model()
    frozen = model[0].bias.detach().clone()
    adamw = AdamW(model, Options())
    _gradients(model, 1)
    adamw.step(0.1)
    assert torch.equal(model[0].bias, frozen)
    assert set(adamw.state_tensors()) == {
        f"{name}:{slot}"
        for name in ("0.weight", "1.weight", "1.bias")
        for slot in ("step", "exp_avg", "exp_avg_sq")
    }


def test_the_state_survives_as_tensors() -> None:
    one, other = _model(), _model()
    first, second = AdamW(one, Options()), AdamW(other, Options())
    _gradients(one, 1)
    first.step(0.1)
    other.load_state_dict(one.state_dict())
    second.load_state_tensors({key: value.clone() for key, value in first.state_tensors().items()})
    for model, adamw in ((one, first), (other, second)):
        _gradients(model, 2)
        adamw.step(0.1)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_is_torchs(clip: float) -> None:
    one, other = _model(), _model()
    _gradients(one, 1)
    _gradients(other, 1)
    norm = AdamW(one, Options(clip=clip)).clip()
    expected = torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
    assert torch.equal(norm, expected)
    assert 0.5 < norm < 100
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        if right.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, rtol=0, atol=0)
