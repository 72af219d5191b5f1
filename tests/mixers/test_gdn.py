"""Gated DeltaNet's documented initialisation, and RWKV-4's."""

import torch
import torch.nn.functional as F

from forgetmenot.mixers.base import Place
from forgetmenot.mixers.gdn import Mixer, Options
from forgetmenot.mixers.rwkv4_time import Mixer as TimeMix
from forgetmenot.mixers.rwkv4_time import Options as TimeMixOptions


def test_decay_starts_as_documented() -> None:
    torch.manual_seed(0)
    mixer = Mixer(Place(32), Options(heads=2000, key_dim=1, value_dim=1))
    rate = mixer.A_log.exp()
    assert rate.min() > 0
    assert rate.max() < 16
    assert abs(rate.mean() - 8) < 0.5
    dt = F.softplus(mixer.dt_bias)
    assert dt.min() >= 1e-4 * 0.99
    assert dt.max() <= 0.1 * 1.01
    assert abs(dt.log().mean() - torch.tensor([1e-3, 1e-1]).log().mean()) < 0.1


def test_rwkv4_decays_cover_short_and_long_memory() -> None:
    mixer = TimeMix(Place(64, layer=1, layers=4), TimeMixOptions())
    decay = torch.exp(-mixer.decay.exp())
    assert decay.max() > 0.99
    assert decay.min() < 1e-3
    assert (decay.diff() <= 0).all()


@torch.no_grad()
def test_a_step_changes_the_state_in_place() -> None:
    mixer = Mixer(Place(16), Options(heads=2, key_dim=4, value_dim=6)).eval()
    _, state, _ = mixer(torch.randn(3, 5, 16))
    before = [x.clone() for x in state[:2]]
    _, after, _ = mixer(torch.randn(3, 1, 16), state)
    for new, old, value in zip(after[:2], state[:2], before, strict=True):
        assert new is old
        assert not torch.equal(new, value)
