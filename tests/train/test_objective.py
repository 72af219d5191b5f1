import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_stub import CountingStream, StubModel, small_options

from forgetmenot.errors import UserError
from forgetmenot.train.objective import batch_tensors, loss

CPU = torch.device("cpu")


def _batch(prompt: int = 0) -> dict[str, torch.Tensor]:
    arrays = CountingStream([6], prompt).batch(np.random.default_rng(0), 24)
    arrays["labels"] = np.where(np.arange(6) % 2, arrays["labels"], -100)
    return batch_tensors(arrays, CPU)


def _model() -> StubModel:
    torch.manual_seed(0)
    return StubModel().eval()


def test_plain_loss_and_accuracy_are_over_the_scored_positions() -> None:
    model, batch = _model(), _batch()
    result = loss(model, batch, small_options())
    logits_NV = model(batch["input_ids"]).logits_BLV[:, 1::2].reshape(-1, 11)
    labels_N = batch["labels"][:, 1::2].reshape(-1)
    torch.testing.assert_close(result.loss, F.cross_entropy(logits_NV, labels_N))
    accuracy = (logits_NV.argmax(-1) == labels_N).float().mean()
    torch.testing.assert_close(result.metrics["accuracy"], accuracy)
    assert not result.metrics["loss"].requires_grad
    assert "score_BTH" in result.aux[1]


def test_a_plain_batch_needs_no_state() -> None:
    model, asked = _model(), []
    inner = model.forward

    def forward(*args: object, **kwargs: object) -> object:
        asked.append(inner(*args, **kwargs))  # type: ignore[arg-type]
        return asked[-1]

    model.forward = forward  # type: ignore[method-assign, assignment]
    loss(model, _batch(), small_options())
    loss(model, _batch(prompt=5), small_options())
    assert [out.state is None for out in asked] == [True, False, False]


def test_a_batch_without_labels_costs_nothing() -> None:
    batch = _batch()
    empty = {"input_ids": batch["input_ids"], "labels": torch.full_like(batch["labels"], -100)}
    arrays = {key: value.numpy() for key, value in empty.items()}
    result = loss(_model(), batch_tensors(arrays, CPU), small_options())
    assert result.loss == 0
    assert result.metrics["accuracy"] == 0


def test_the_prompted_loss_is_the_documented_sum() -> None:
    model, batch = _model(), _batch(prompt=5)
    options = small_options(lm_weight=0.3, prompt_weight=0.7, update_penalty=0.01)
    result = loss(model, batch, options)
    ids_BP, mask_BP = batch["prompt_ids"], batch["prompt_mask"]
    prompt = model(ids_BP, mask_BL=mask_BP)
    state = model.commit_prompt(prompt.state)
    body = model(batch["input_ids"], state=state)
    scored_BL = batch["labels"] != -100
    answers = F.cross_entropy(body.logits_BLV[scored_BL], batch["labels"][scored_BL])
    every = F.cross_entropy(body.logits_BLV.flatten(0, 1), batch["lm_labels"].flatten())
    known_BP = mask_BP[:, :-1]
    of_prompt = F.cross_entropy(prompt.logits_BLV[:, :-1][known_BP], ids_BP[:, 1:][known_BP])
    norm = model.update_penalty(state)
    torch.testing.assert_close(result.loss, answers + 0.3 * every + 0.7 * of_prompt + 0.01 * norm)
    for name, value in {
        "loss": answers,
        "lm_loss": every,
        "prompt_loss": of_prompt,
        "update_norm": norm,
    }.items():
        torch.testing.assert_close(result.metrics[name], value)


def test_the_prompt_reaches_the_bodys_loss_through_the_state() -> None:
    model, batch = _model(), _batch(prompt=5)
    options = small_options(lm_weight=0.0, prompt_weight=0.0, update_penalty=0.0)
    loss(model, batch, options).loss.backward()
    assert model.generator.weight.grad is not None
    assert model.generator.weight.grad.abs().sum() > 0


def test_the_state_can_be_cut_from_the_prompts_pass() -> None:
    gradients = []
    for through in (True, False):
        model, batch = _model(), _batch(prompt=5)
        options = small_options(prompt_weight=0.0, update_penalty=0.0, state_gradient=through)
        loss(model, batch, options).loss.backward()
        assert model.generator.weight.grad is not None
        assert model.generator.weight.grad.any()
        assert model.embed.weight.grad is not None
        gradients.append(model.embed.weight.grad)
    assert not torch.equal(*gradients)


@pytest.mark.parametrize("name", ["sg_weight", "rec_weight", "kl_weight"])
def test_further_terms_need_a_model_that_has_them(name: str) -> None:
    with pytest.raises(UserError, match=f"train: {name}: found 0.5, allowed: 0 without ProSG"):
        loss(_model(), _batch(prompt=5), small_options(**{name: 0.5}))
