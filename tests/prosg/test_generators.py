"""What sets the generators apart, and options that do not fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot.model import build
from forgetmenot.prosg.points import prefixes
from forgetmenot.prosg.svd import singular_vectors

Make = Callable[..., Any]


def committed(made: Any, prompt_BP: torch.Tensor) -> Any:
    return made.commit_prompt(made(prompt_BP).state)


def size(made: Any) -> int:
    return sum(parameter.numel() for parameter in made.generator.parameters())


@pytest.mark.parametrize("generator", ["g1", "g2", "g3", "g4", "static"])
def test_rank_of_the_update(generator: str, trained: Make, prompt_BP: torch.Tensor) -> None:
    change = committed(trained("gdn", generator), prompt_BP).update[1]["down"].change()
    assert torch.linalg.matrix_rank(change).tolist() == [3, 3]


def test_probes_read_both_sides_of_the_matrix(trained: Make, prompt_BP: torch.Tensor) -> None:
    """Against the formulas of G2 written as loops."""
    made = trained("gdn", "g2").train()  # unclipped
    read = made.backbone.read(made(prompt_BP).state.layers)[0]
    factors = committed(made, prompt_BP).update[0]["up"]
    generator = made.generator
    for j in range(3):
        u = torch.cat([read.matrix_BHVK[0, h] @ generator.key_probes["0_up"][j, h] for h in (0, 1)])
        v = torch.cat(
            [read.matrix_BHVK[0, h].T @ generator.value_probes["0_up"][j, h] for h in (0, 1)]
        )
        u, v = (x / x.square().mean().sqrt() for x in (u, v))
        torch.testing.assert_close(factors.left_BOR[0, :, j], generator.left["0_up"].weight @ u)
        torch.testing.assert_close(factors.right_BIR[0, :, j], generator.right["0_up"].weight @ v)


def test_singular_vectors_rebuild_the_matrix_and_have_one_sign() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(2, 3, 5, 4).double()
    u, v = singular_vectors(matrix, 4)
    stacked = matrix.flatten(1, 2)
    s = torch.linalg.svdvals(stacked)
    rebuilt = torch.einsum("bra,br,brk->bak", u, s, v) / (u.shape[-1] * v.shape[-1]) ** 0.5
    torch.testing.assert_close(rebuilt, stacked)
    flipped, _ = singular_vectors(-matrix, 4)
    torch.testing.assert_close(flipped, u)


def test_the_points_of_a_prompt_are_its_beginnings() -> None:
    ids_BL = torch.tensor([[1, 2, 3, 4, 5], [9, 9, 9, 6, 7]])
    mask_BL = torch.tensor([[True] * 5, [False] * 3 + [True] * 2])
    kept = [
        [row[mask].tolist() for row, mask in zip(ids, mask_BP, strict=True)]
        for ids, mask_BP in prefixes(ids_BL, mask_BL, 4)
    ]
    assert kept == [[[1, 2], [6]], [[1, 2, 3], [6]], [[1, 2, 3, 4], [6, 7]]]
    unpadded = [(ids[:1].tolist(), mask) for ids, mask in prefixes(ids_BL, None, 4)]
    assert unpadded == [([[1, 2]], None), ([[1, 2, 3]], None), ([[1, 2, 3, 4]], None)]


def test_several_points_join_the_factors_of_each(
    backbone: str, trained: Make, prompt_BP: torch.Tensor
) -> None:
    made = trained(backbone, "g5", checkpoints=2).train()
    name, joined = next(iter(committed(made, prompt_BP).update[1].items()))
    assert joined.left_BOR.shape[-1] == 6
    halves = [
        made.generator.single(made.backbone.read(made(part).state.layers))[1][name].change()
        for part in (prompt_BP[:, :5], prompt_BP)
    ]
    torch.testing.assert_close(joined.change(), (halves[0] + halves[1]) / 2)


def test_points_need_a_prompt_in_one_call(trained: Make, prompt_BP: torch.Tensor) -> None:
    made = trained("rwkv4", "g5")
    state = made(prompt_BP[:, 5:], made(prompt_BP[:, :5]).state).state
    with pytest.raises(ValueError, match="state: found 1 points of the prompt; allowed: 4, which"):
        made.commit_prompt(state)


def test_all_layers_reach_every_target_with_g4_only(trained: Make, prompt_BP: torch.Tensor) -> None:
    for generator, expected in (("g4", True), ("g1", False)):
        made = trained("gdn", generator).train()
        state = made(prompt_BP).state
        state.layers[2].memory_BHKV.retain_grad()  # of the second block
        made.commit_prompt(state).update[0]["up"].change().square().sum().backward()
        gradient = state.layers[2].memory_BHKV.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == expected


@pytest.mark.parametrize("generator", ["g1", "g2", "g3", "g4"])
def test_shared_heads_are_fewer_but_eta_is_each_targets_own(
    generator: str, fresh: Make, trained: Make, prompt_BP: torch.Tensor
) -> None:
    made = trained("gdn", generator, shared=True)
    assert size(made) < size(fresh("gdn", generator))
    assert sorted(made.generator.left) == ["down", "up"]
    assert sorted(made.generator.eta) == ["0_down", "0_up", "1_down", "1_up"]
    assert committed(made, prompt_BP).update[0]["up"].left_BOR.any()


def test_a_bottleneck_makes_heads_smaller_and_starts_at_zero_too(
    fresh: Make, prompt_BP: torch.Tensor
) -> None:
    made = fresh("gdn", "g2", bottleneck=2)
    assert size(made) < size(fresh("gdn", "g2"))
    factors = committed(made, prompt_BP).update[0]["up"]
    assert not factors.left_BOR.any()
    assert factors.right_BIR.any()


def test_a_fixed_step_has_no_parameter(trained: Make, prompt_BP: torch.Tensor) -> None:
    made = trained("rwkv4", step="fixed", step_init=0.1)
    assert not any(name.startswith("eta") for name, _ in made.generator.named_parameters())
    assert committed(made, prompt_BP).update[0]["key"].eta == 0.1


def test_a_step_made_from_the_state_differs_between_prompts(
    backbone: str, fresh: Make, trained: Make, prompt_BP: torch.Tensor
) -> None:
    learned = stepped = None
    for step in ("learned", "state"):
        made = fresh(backbone, step=step, step_init=0.7).train()
        for head in made.generator.left.values():
            torch.nn.init.ones_(head.weight)
        changes = [
            f.change() for block in committed(made, prompt_BP).update for f in block.values()
        ]
        learned, stepped = stepped, changes
    torch.testing.assert_close(learned, stepped)  # the same at the start
    made = trained(backbone, step="state").train()
    name, factors = next(iter(committed(made, prompt_BP).update[0].items()))
    for step in made.generator.step.values():
        torch.nn.init.normal_(step.weight)
    moved = committed(made, prompt_BP).update[0][name].left_BOR / factors.left_BOR
    assert moved[0].std() < 1e-6 * moved[0].mean()
    assert not torch.isclose(moved[0].mean(), moved[1].mean())


def test_chosen_targets_alone_change(
    trained: Make, prompt_BP: torch.Tensor, body_BL: torch.Tensor
) -> None:
    made = trained("rwkv4", target_mixer="rwkv4_time", targets=["out"], target_blocks=[1])
    state = committed(made, prompt_BP)
    assert [list(block) for block in state.update] == [[], ["out"]]
    assert made.targets()[1]["out"] is made.base.layers[2].out
    plain = made(body_BL, made.reset(state)).logits_BLV
    assert not torch.allclose(made(body_BL, state).logits_BLV, plain)


@pytest.mark.parametrize("rival", ["wide", "frozen_read", "offset"])
def test_rivals_match_the_parameters_of_a_generator(backbone: str, rival: str, fresh: Make) -> None:
    """To the nearest unit or read, if a single one is not more already."""
    for matched in ["g1"] if backbone == "rwkv4" else ["g1", "g2"]:
        wanted = size(fresh(backbone, matched))
        if rival == "wide":
            unit = least = 2 * 2 * 12  # a unit in both blocks, with its way in and out
        else:
            least = size(fresh(backbone, rival, reads=1))
            unit = size(fresh(backbone, rival, reads=2)) - least
        found = size(fresh(backbone, rival, matched=matched))
        assert abs(found - max(wanted, least)) <= unit / 2


def test_wide_acts_on_the_prompt_too(trained: Make, prompt_BP: torch.Tensor) -> None:
    made = trained("gdn", "wide")
    ours, base = made(prompt_BP).logits_BLV, made.base(prompt_BP).logits_BLV
    assert not torch.allclose(ours, base)
    assert committed(made, prompt_BP).update is None


@pytest.mark.parametrize(
    ("backbone_name", "options", "message"),
    [
        ("rwkv4", {"targets": ["gate"]}, "targets: found 'gate'; allowed: receptance, key, value"),
        ("rwkv4", {"target_mixer": "swiglu"}, "target_mixer: found no 'swiglu' in the model"),
        ("rwkv4", {"target_blocks": [2]}, r"target_blocks: found \[2\]; allowed: 0 to 1"),
        ("rwkv4", {"target_mixer": "rwkv4_time"}, "targets: found None; allowed: receptance, key"),
        ("rwkv4", {"generator": "g2"}, "found 'g2' for vector states; allowed: 'g1', 'g4', 'g5'"),
        ("rwkv4", {"generator": "g3"}, "found 'g3' for vector states; allowed: 'g1', 'g4', 'g5'"),
        ("gdn", {"generator": "g3", "rank": 5}, "rank: found 5; allowed: 1 to 4"),
        ("gdn", {"generator": "g4", "width": 6}, "width: found 6; allowed for 'g4': a multiple"),
        ("gdn", {"rank": 0}, "rank: found 0, allowed: 1 or more"),
        ("gdn", {"bottleneck": 0}, "bottleneck: found 0, allowed: 1 or more"),
        ("gdn", {"reads": 0}, "reads: found 0, allowed: 1 or more"),
        ("gdn", {"turns": "sum"}, "turns: found 'sum', allowed: 'keep', 'replace', "),
        ("gdn", {"step": "state", "step_init": 0.0}, "step_init: found 0.0, allowed with 'state'"),
        ("gdn", {"clip": 0}, "clip: found 0, allowed: above 0"),
        ("gdn", {"targets": []}, "targets: found an empty list"),
        ("gdn", {"generator": "g6"}, "generator: found 'g6', allowed: 'g1', 'g2', "),
    ],
)
def test_unfit_options_are_refused(
    backbone_name: str, options: dict[str, Any], message: str, plain: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        build({**plain(backbone_name).spec, "prosg": options})
