"""ProSG on models that are not ours, as docs/prosg.md shows it."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from forgetmenot.model import State
from forgetmenot.prosg import wrap
from forgetmenot.prosg.readout import Read
from forgetmenot.prosg.wrapper import ProSG

PAGE = Path(__file__).resolve().parents[2] / "docs" / "prosg.md"


@pytest.fixture
def page() -> dict[str, Any]:
    """What the page's snippet leaves behind."""
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(snippet, str(PAGE), "exec"), names)
    return names


def stirred(page: dict[str, Any]) -> Any:
    """The page's model, in float64, as after training."""
    model = page["model"].double().eval()
    with torch.no_grad():
        for head in model.generator.left.values():
            head.weight.normal_(std=0.1)
    return model


def test_the_page_runs(page: dict[str, Any]) -> None:
    model, yours = page["model"], page["yours"]
    assert page["logits"].shape == (3, 1, 50)
    plain, _ = yours(page["body"], yours(page["prompt"])[1])
    state = model.commit_prompt(model(page["prompt"]).state)
    assert torch.equal(model(page["body"], state).logits_BLV, plain)
    assert page["state"].update is None


def test_a_trained_generator_changes_what_follows_and_can_be_reset(page: dict[str, Any]) -> None:
    model = stirred(page)
    read = model(page["prompt"]).state
    plain = model(page["body"], read).logits_BLV
    state = model.commit_prompt(read)
    assert not torch.allclose(model(page["body"], state).logits_BLV, plain)
    assert torch.equal(model(page["body"], model.reset(state)).logits_BLV, plain)
    alone = model(page["body"], State((), state.update)).logits_BLV  # from nothing but the update
    assert not torch.allclose(alone, page["yours"](page["body"])[0])


def test_batch_steps_and_merged_weights_agree(page: dict[str, Any]) -> None:
    model, body = stirred(page), page["body"]
    whole = model(body, model.commit_prompt(model(page["prompt"]).state)).logits_BLV
    for b in range(3):
        state = model.commit_prompt(model(page["prompt"][b : b + 1]).state)
        torch.testing.assert_close(model(body[b : b + 1], state).logits_BLV, whole[b : b + 1])
        with model.merged(state) as inside:
            steps = []
            for t in range(body.shape[1]):
                out = model(body[b : b + 1, t : t + 1], inside)
                steps.append(out.logits_BLV)
                inside = out.state
        torch.testing.assert_close(torch.cat(steps, 1), whole[b : b + 1])


def test_gradients_reach_the_generator_and_the_owners_model(page: dict[str, Any]) -> None:
    model = stirred(page).train()
    state = model.commit_prompt(model(page["prompt"]).state)
    model(page["body"], state).logits_BLV.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_copy_is_independent(page: dict[str, Any]) -> None:
    model = stirred(page)
    other = copy.deepcopy(model)
    assert other.targets()[0]["up"] is other.base.model.ups[0]
    with torch.no_grad():
        other.targets()[0]["up"].weight.zero_()
    assert page["yours"].ups[0].weight.any()


def test_seeds_choose_the_generator_and_leave_the_owners_weights(page: dict[str, Any]) -> None:
    model = page["model"]
    before = {name: p.clone() for name, p in model.base.named_parameters()}
    trunks = []
    for seed in (1, 1, 2):
        model.init_parameters(seed)
        trunks.append(model.generator.trunk.linear.weight.clone())
    assert torch.equal(trunks[0], trunks[1])
    assert not torch.equal(trunks[0], trunks[2])
    assert all(torch.equal(p, before[name]) for name, p in model.base.named_parameters())


def arguments(page: dict[str, Any]) -> dict[str, Any]:
    yours = page["yours"]
    return {
        "run": lambda module, ids, state: module(ids, state),
        "read": lambda state: [Read(hidden) for hidden in state],
        "targets": [
            {"up": up, "down": down} for up, down in zip(yours.ups, yours.downs, strict=True)
        ],
        "example": page["prompt"],
    }


@pytest.mark.parametrize("generator", ["g4", "g5", "static", "frozen_read", "offset", "wide"])
def test_other_generators_and_rivals(generator: str, page: dict[str, Any]) -> None:
    yours = page["yours"]
    model = wrap(yours, **arguments(page), mixers=list(yours.grus), generator=generator, width=8)
    state = model.commit_prompt(model(page["prompt"]).state)
    plain, _ = yours(page["body"], yours(page["prompt"])[1])
    assert torch.equal(model(page["body"], state).logits_BLV, plain)


def test_matrices_are_normalised(page: dict[str, Any]) -> None:
    given = {
        **arguments(page),
        "read": lambda state: [Read(matrix_BHVK=5 * h.view(-1, 2, 2, 4)) for h in state],
    }
    model = wrap(page["yours"], **given, generator="g2")
    (first, _) = model.backbone.read(model(page["prompt"]).state.layers)
    scale = first.matrix_BHVK.square().mean((2, 3))
    torch.testing.assert_close(scale, torch.ones_like(scale))


def test_our_models_need_options_alone(plain: Callable[..., Any]) -> None:
    base = plain("gdn")
    model = wrap(base, generator="g2", rank=2)
    assert isinstance(model, ProSG)
    assert model.base is base
    assert list(model.targets()[0]) == ["up", "down"]


def test_what_is_missing_or_unfit_is_named(page: dict[str, Any]) -> None:
    yours, given = page["yours"], arguments(page)
    with pytest.raises(TypeError, match="wrap: found no read, example; allowed: all four for a Yo"):
        wrap(yours, run=given["run"], targets=given["targets"])
    with pytest.raises(TypeError, match=r"targets\.0\.up: found GRU; allowed: nn\.Linear"):
        wrap(yours, **{**given, "targets": [{"up": nn.GRU(2, 2)}]})
    with pytest.raises(ValueError, match="targets: found none; allowed: linear maps"):
        wrap(yours, **{**given, "targets": [{}, {}]})
    with pytest.raises(ValueError, match="targets: found 1 blocks beside 2 of `read`; allowed: as"):
        wrap(yours, **{**given, "targets": given["targets"][:1]})
    with pytest.raises(ValueError, match="mixers: found 1; allowed: 2 or none"):
        wrap(yours, **given, mixers=[yours.grus[0]])
    with pytest.raises(ValueError, match="mixers: found none; allowed: one module for every"):
        wrap(yours, **given, generator="frozen_read")
    with pytest.raises(ValueError, match="rank: found 0, allowed: 1 or more"):
        wrap(yours, **given, rank=0)
    mask_BP = torch.ones_like(page["prompt"], dtype=torch.bool)
    with pytest.raises(ValueError, match="mask: found one; allowed: none"):
        page["model"](page["prompt"], mask_BL=mask_BP)
