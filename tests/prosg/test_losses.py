"""The optional terms of the objective, and gradients in factored form (construction 6.4)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from forgetmenot.mixers.base import select_rows
from forgetmenot.model import State
from forgetmenot.prosg import losses
from forgetmenot.prosg.factors import Factors
from forgetmenot.prosg.gradient import SOFT, Gradient
from forgetmenot.train.objective import batch_tensors, loss
from forgetmenot.train.options import Options

Make = Callable[..., Any]
Batch = dict[str, torch.Tensor]


@pytest.fixture
def batch() -> Batch:
    """Two padded prompts and bodies with two answers each."""
    rng = np.random.default_rng(0)
    labels = np.full((2, 9), -100)
    labels[:, [3, 7]] = rng.integers(31, size=(2, 2))
    ids = rng.integers(31, size=(2, 9))
    arrays = {
        "prompt_ids": rng.integers(31, size=(2, 6)),
        "prompt_mask": np.arange(6) >= np.array([[2], [0]]),
        "input_ids": ids,
        "labels": labels,
        "lm_labels": np.concatenate([ids[:, 1:], np.full((2, 1), -100)], 1),
    }
    return batch_tensors(arrays, torch.device("cpu"))


def passes(made: Any, batch: Batch) -> tuple[State, State]:
    """State after the prompt, before and after committing it."""
    prompt = made(batch["prompt_ids"], mask_BL=batch["prompt_mask"]).state
    return prompt, made.commit_prompt(prompt)


def test_factored_forms_equal_the_full_gradient() -> None:
    torch.manual_seed(0)
    gradient = Gradient(torch.randn(2, 8, 5).double(), torch.randn(2, 8, 4).double())
    eta = torch.tensor(3.0).double()  # is no part of what is compared
    factors = Factors(torch.randn(2, 4, 3).double(), torch.randn(2, 5, 3).double(), eta)
    full = gradient.errors_BTO.mT @ gradient.inputs_BTI
    product = factors.left_BOR @ factors.right_BIR.mT
    torch.testing.assert_close(gradient.squared_norm(), full.square().sum((1, 2)))
    inner = (product * full).sum((1, 2))
    torch.testing.assert_close(gradient.inner(factors), inner)
    norm = (product.square().sum((1, 2)) + SOFT**2).sqrt() * full.norm(dim=(1, 2))
    torch.testing.assert_close(gradient.cosine(factors), inner / norm)
    error = (product / 3 - full).square().sum((1, 2)) / full.square().sum((1, 2))
    torch.testing.assert_close(gradient.relative_error(factors), error)


@pytest.mark.parametrize("teacher", ["prompt", "response"])
def test_teacher_gradients_are_those_of_the_weights(
    backbone: str, teacher: str, trained: Make, batch: Batch
) -> None:
    made = trained(backbone).train()
    prompt, _ = passes(made, batch)
    found = losses.teacher_gradients(made, batch, prompt, teacher)
    linears = [(n, name, m) for n, block in enumerate(made.targets()) for name, m in block.items()]
    for b, start in enumerate((2, 0)):
        ids = batch["prompt_ids"][b : b + 1, start:]
        with torch.no_grad():
            state = State(made.base(ids).state.layers)
        if teacher == "prompt":
            logits, labels = made.base(ids).logits_BLV[0, :-1], ids[0, 1:]
        else:
            logits = made.base(batch["input_ids"][b : b + 1], state).logits_BLV[0]
            labels = batch["labels"][b]
        value = F.cross_entropy(logits, labels)
        expected = torch.autograd.grad(value, [linear.weight for _, _, linear in linears])
        for (n, name, _), full in zip(linears, expected, strict=True):
            inputs, errors = found[n][name]
            ours = errors[b].T @ inputs[b]
            torch.testing.assert_close(ours, full, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in made.parameters())


@pytest.mark.parametrize("distance", ["cosine", "squared"])
def test_synthetic_gradient_loss_pulls_the_update_to_the_gradient(
    distance: str, fresh: Make, batch: Batch
) -> None:
    made = fresh("gdn", "g1", rank=8, width=32).train()
    made.base.requires_grad_(False)
    options = Options(sg_weight=1.0, sg_distance=distance)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(made.generator.parameters(), lr=1e-2)
    seen = []
    for _ in range(40):
        prompt, state = passes(made, batch)
        value = losses.synthetic_gradient(made, batch, prompt, state, options)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(value.item())
    assert seen[0] == pytest.approx(1.0)  # at a zero update, either way
    assert seen[-1] < 0.5


def test_recall_reads_the_body_from_nothing_but_the_update(
    case: tuple[str, str], trained: Make, batch: Batch
) -> None:
    made = trained(*case)
    _, state = passes(made, batch)
    if case[1] == "wide":
        with pytest.raises(ValueError, match="state: found no update"):
            losses.recall(made, batch, state)
        return
    logits = made(batch["input_ids"], State((), state.update)).logits_BLV
    expected = F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())
    torch.testing.assert_close(losses.recall(made, batch, state), expected)
    plain = made.base(batch["input_ids"]).logits_BLV
    assert torch.allclose(logits, plain) == torch.allclose(
        made(batch["input_ids"], state).logits_BLV,
        made(batch["input_ids"], made.reset(state)).logits_BLV,
    )


def test_distillation_is_from_the_base_with_the_prompt_right_before(
    backbone: str, trained: Make, batch: Batch
) -> None:
    made = trained(backbone).train()
    prompt, state = passes(made, batch)
    logits = made(batch["input_ids"], state).logits_BLV
    expected = []
    for b, start in enumerate((2, 0)):
        for t in (3, 7):
            window = batch["input_ids"][b, max(0, t - 4) : t + 1]
            told = torch.cat([batch["prompt_ids"][b, start:], window])[None]
            teacher = made.base(told).logits_BLV[0, -1].float().softmax(-1)
            student = logits[b, t].float().log_softmax(-1)
            expected.append((teacher * (teacher.log() - student)).sum())
    value = losses.distillation(made, batch, prompt, logits, window=5)
    torch.testing.assert_close(value, torch.stack(expected).mean())
    value.backward()
    assert made.generator.right[next(iter(made.generator.right))].weight.grad is not None


def test_distillation_without_answers_is_zero(trained: Make, batch: Batch) -> None:
    made = trained("rwkv4")
    prompt, state = passes(made, batch)
    none = {**batch, "scored": batch["scored"][:0]}
    logits = made(batch["input_ids"], state).logits_BLV
    assert losses.distillation(made, none, prompt, logits, 5) == 0


def test_the_terms_are_weighted_and_logged(backbone: str, trained: Make, batch: Batch) -> None:
    made = trained(backbone).train()
    plain = loss(made, batch, Options())
    options = Options(sg_weight=0.3, rec_weight=0.2, kl_weight=0.7, kl_window=5)
    result = loss(made, batch, options)
    extra = sum(
        weight * result.metrics[f"{name}_loss"]
        for name, weight in (("sg", 0.3), ("rec", 0.2), ("kl", 0.7))
    )
    torch.testing.assert_close(result.loss, plain.loss + extra)
    assert {"update_ratio/0/up", "update_ratio/0/key"} & set(result.metrics)
    assert not any(name.endswith(("sg_loss", "rec_loss", "kl_loss")) for name in plain.metrics)
    assert not any(value.requires_grad for value in result.metrics.values())


@pytest.mark.parametrize("through", [True, False])
def test_the_state_gradient_can_be_stopped(
    backbone: str, through: bool, trained: Make, batch: Batch
) -> None:
    made = trained(backbone).train()
    options = Options(state_gradient=through, prompt_weight=0.0)
    ids = batch["prompt_ids"].unique()
    only = [int(i) for i in ids if i not in batch["input_ids"]]
    assert only
    # embeddings of tokens that stand in the prompt alone; the head is not tied here
    made.base.head = torch.nn.Linear(12, 31, bias=False).double()
    loss(made, batch, options).loss.backward()
    gradient = made.base.embed.weight.grad[only]
    assert bool(gradient.any()) == through
    assert all(p.grad.any() for n, p in made.generator.named_parameters())


def test_a_copy_of_the_prompts_state_serves_every_answer(trained: Make, batch: Batch) -> None:
    made = trained("gdn")
    prompt, _ = passes(made, batch)
    again = select_rows(prompt, torch.tensor([0, 1]))
    losses.distillation(made, batch, prompt, made(batch["input_ids"], prompt).logits_BLV, 5)
    torch.testing.assert_close(prompt.layers[0].memory_BHKV, again.layers[0].memory_BHKV)


def test_factors_are_needed_for_a_gradient(trained: Make, batch: Batch) -> None:
    made = trained("gdn", "frozen_read").train()
    with pytest.raises(ValueError, match="state: found frozen_read; allowed: one with low-rank"):
        loss(made, batch, Options(sg_weight=0.1))
