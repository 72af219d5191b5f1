"""What a body is read from: the state after the right prompt, or after something else (controls).

ProSG specification, section 6.7: rivals that need no training and controls on the update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from forgetmenot.data.prosg.batch import left_pad
from forgetmenot.data.prosg.evalset import Record
from forgetmenot.data.prosg.world import CLOSE, OPEN, World
from forgetmenot.data.sampling import sample_rng
from forgetmenot.evaluate.prosg_rehearsal import Refeed, Refresh, is_recurrent
from forgetmenot.evaluate.prosg_rollout import Rehearsal
from forgetmenot.evaluate.prosg_ttt import tune
from forgetmenot.mixers.base import select_rows

TTT = {"ttt-1": 1, "ttt-4": 4, "ttt-16": 16}
TTT_RANK = {"ttt-rank-1": 1, "ttt-rank-4": 4, "ttt-rank-16": 16}
"""Gradient steps of the controls that tune on the prompt, in full and truncated to a rank."""
RIVALS = ("prompt-twice", "refresh", "refeed", *TTT, *TTT_RANK)
"""Controls that are other ways to keep the prompt: they have a capture and a retention."""
EMPTY = f"{OPEN} {CLOSE}"


@dataclass(frozen=True)
class Settings:
    """Numbers of the rivals; see the options of the evaluator `prosg`."""

    every: int = 64
    share: float = 0.5
    rate: float = 0.3
    rank: int = 4
    clip: float = 0.3


class Start(NamedTuple):
    """A model with the state that its body starts from, and what is done to it now and then."""

    model: Any
    state: Any
    rehearsal: Rehearsal | None = None


def prompt_state(model: Any, world: World, prompts: Sequence[str], device: str) -> Any:
    """State after the prompts (left-padded into one batch) are read and committed."""
    ids, mask = left_pad([world.encode(prompt) for prompt in prompts], world.pad)
    ids_BP, mask_BP = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    return model.commit_prompt(model(ids_BP, mask_BL=mask_BP).state)


def start(
    control: str, model: Any, world: World, records: Sequence[Record], others: Sequence[Record],
    device: str, settings: Settings,
) -> Start | None:  # fmt: skip
    """What the bodies start from under a control; None when it does not apply to the model.

    The controls of `controlled_state`, and the rivals. "prompt-twice": the prompt is read twice
    (JRT). "refresh": every so many tokens a share of the memory is what it was after the prompt.
    "refeed": the prompt is read again as often; it does not count in the distance. Both are for
    recurrent memories. "ttt-K", "ttt-rank-K": K gradient steps on the prompt, for models without
    an update of their own.
    """
    prompts = [record.prompt for record in records]
    if control == "prompt-twice":
        twice = [f"{prompt} {prompt}" for prompt in prompts]
        return Start(model, prompt_state(model, world, twice, device))
    if control in TTT or control in TTT_RANK:
        rank = settings.rank if control in TTT_RANK else None
        steps = {**TTT, **TTT_RANK}[control]
        ids = [world.encode(prompt) for prompt in prompts]
        tuned = tune(model, ids, world.pad, steps, settings.rate, rank, settings.clip, device)
        if tuned is None:
            return None
        return Start(tuned, prompt_state(tuned, world, prompts, device))
    named = "none" if control in RIVALS else control
    state = controlled_state(named, model, world, records, others, device)
    if state is None or control not in RIVALS:
        return None if state is None else Start(model, state)
    if not is_recurrent(state):
        return None
    if control == "refresh":
        kept = select_rows(state, torch.arange(len(records), device=device))
        return Start(model, state, Refresh(kept, settings.every, settings.share))
    return Start(model, state, Refeed(model, world, prompts, settings.every, device))


def controlled_state(
    control: str, model: Any, world: World, records: Sequence[Record], others: Sequence[Record],
    device: str,
) -> Any | None:  # fmt: skip
    """State that the bodies start from under a control; None when the model has no such update.

    "none": the own prompt. "wrong-prompt": another sample's. "no-prompt": an empty prompt. The
    others keep the own recurrent state. "wrong-update": with the update from another sample's
    prompt. "empty-update": from an empty prompt. "shuffled-update": each block has that of the one
    before. "random-update": normal factors of the same norm. "no-update": without. "adapter-only"
    is the opposite: the own update alone, with the recurrent state at nothing.
    """
    if control == "no-prompt":
        return prompt_state(model, world, [EMPTY] * len(records), device)
    if control == "wrong-prompt":
        return prompt_state(model, world, [record.prompt for record in others], device)
    state = prompt_state(model, world, [record.prompt for record in records], device)
    if control == "none":
        return state
    if getattr(state, "update", None) is None:
        return None
    if control == "no-update":
        return state._replace(update=None)
    if control == "adapter-only":
        return state._replace(layers=())
    if control in ("wrong-update", "empty-update"):
        wrong = [EMPTY] * len(records)
        if control == "wrong-update":
            wrong = [record.prompt for record in others]
        return state._replace(update=prompt_state(model, world, wrong, device).update)
    change = {"shuffled-update": _shuffled, "random-update": _random}[control]
    update = change(model, state.update, records)
    return None if update is None else state._replace(update=update)


def _shuffled(model: Any, update: Any, records: Sequence[Record]) -> Any | None:
    """Every block with the update of the one before; None unless all are alike and several."""
    if not isinstance(update, list) or len({_shapes(block) for block in update}) != 1:
        return None
    return [update[-1], *update[:-1]] if len(update) > 1 else None


def _shapes(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return tuple(part.shape)
    if isinstance(part, dict):
        return tuple((key, _shapes(value)) for key, value in part.items())
    return tuple(map(_shapes, part)) if isinstance(part, tuple | list) else part


def _random(model: Any, update: Any, records: Sequence[Record]) -> Any | None:
    """Low-rank factors drawn from the records' seeds, each target's |dW| as it was."""
    if not getattr(getattr(model, "generator", None), "has_factors", False):
        return None
    streams = [sample_rng(0, "prosg_pf random update", record.seed) for record in records]

    def like(x: torch.Tensor) -> torch.Tensor:
        drawn = [torch.from_numpy(stream.standard_normal(x.shape[1:])) for stream in streams]
        return torch.stack(drawn).to(x)

    def drawn(factors: Any) -> Any:
        new = factors._replace(left_BOR=like(factors.left_BOR), right_BIR=like(factors.right_BIR))
        scale_B = (factors.squared_norm() / new.squared_norm().clamp(min=1e-30)).sqrt()
        return new._replace(left_BOR=new.left_BOR * scale_B[:, None, None])

    return [{name: drawn(factors) for name, factors in block.items()} for block in update]
