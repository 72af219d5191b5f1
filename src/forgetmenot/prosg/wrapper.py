"""ProSG around an RNN: the state after the prompt becomes a temporary change of the weights.

A from-scratch implementation of the method as the abstract of arXiv 2311.01981 describes it; the
details are ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forgetmenot.model import LanguageModel, Output, State
from forgetmenot.prosg import losses
from forgetmenot.prosg.apply import Targets, applied, merged
from forgetmenot.prosg.backbone import Backbone, backbone_of
from forgetmenot.prosg.choose import make_generator
from forgetmenot.prosg.factor_generator import FactorGenerator
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.points import prefixes
from forgetmenot.prosg.readout import Read


class Points(NamedTuple):
    """In place of an update while a prompt is read: read-outs at earlier points of it (g5)."""

    reads: list[list[Read]]


class ProSG(nn.Module):
    """A language model whose generation runs on weights changed by its prompt.

    Reading a prompt uses the weights as they are. `commit_prompt` turns the state after it into an
    update that travels in the state: dropping the state drops the update. The rivals of
    construction 6.7 that need training are other generators under the same contract (`Options`).

    A state without layers, `State((), update)`, starts from nothing but the update.
    """

    def __init__(
        self, base: LanguageModel, options: Options, backbone: Backbone | None = None
    ) -> None:
        """`backbone`: what to know of a base that is no LanguageModel (`prosg.wrap`).

        Raises ValueError or TypeError for options that do not fit the base.
        """
        super().__init__()
        self.base, self.options = base, options
        self.spec = base.spec
        self.backbone = backbone or backbone_of(base, options)
        self.generator = make_generator(self.backbone, options)

    def targets(self) -> Targets:
        """The adapted linear maps of every block."""
        return self.backbone.targets

    def reset_parameters(self) -> None:
        """Initialise base and generator from torch's current random state."""
        self.base.reset_parameters()
        self.generator.reset_parameters()

    def init_parameters(self, seed: int) -> None:
        """Initialise as a function of `seed`: the base as it would be without ProSG."""
        self.base.init_parameters(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator.reset_parameters()

    def forward(
        self,
        input_ids_BL: Tensor,
        state: State | None = None,
        *,
        mask_BL: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        need_state: bool = True,
        logits_to_keep: int | Tensor = 0,
    ) -> Output:
        """As `LanguageModel.forward`; a state with an update runs on the changed weights."""
        update = None if state is None or isinstance(state.update, Points) else state.update
        before = State(state.layers) if state is not None and state.layers else None
        options: dict[str, Any] = {"mask_BL": mask_BL, "cu_seqlens": cu_seqlens}
        options |= {"need_state": need_state, "logits_to_keep": logits_to_keep}
        with applied(self._hooks(update)):
            out = self.base(input_ids_BL, before, **options)
        if out.state is None:
            return out
        if state is None and self.generator.checkpoints > 1 and cu_seqlens is None:
            update = self._points(input_ids_BL, mask_BL)
        elif update is not None:
            update = self.generator.later(update, input_ids_BL.shape[1])
        return out._replace(state=State(out.state.layers, update))

    def commit_prompt(self, state: State) -> State:
        """The state after the prompt, or after a later user turn, with the update made from it.

        At a later turn the option `turns` decides: "keep" the update that is there, "replace" it by
        one from the state as it is now, "accumulate" both, or "decay" the earlier one first. At
        inference the update is clipped (`clip`, `clip_training`). Gradients reach the state.
        """
        earlier = None if isinstance(state.update, Points) else state.update
        if earlier is not None and self.options.turns == "keep":
            return state
        points = state.update.reads if isinstance(state.update, Points) else []
        dtype = next(self.generator.parameters()).dtype
        with torch.autocast(self._device().type, enabled=False):
            reads = [
                [read.map(lambda x: x.to(dtype)) for read in point]
                for point in (*points, self.backbone.read(state.layers))
            ]
            update = self.generator.make(reads)
            if isinstance(self.generator, FactorGenerator):
                if earlier is not None and self.options.turns != "replace":
                    update = self.generator.combine(earlier, update)
                if self.options.clip_training or not self.training:
                    update = self.generator.clip(self.targets(), update)
        return State(state.layers, update)

    def reset(self, state: State) -> State:
        """The state without its update: what the model is when a session ends."""
        return State(state.layers)

    @contextmanager
    def merged(self, state: State) -> Iterator[State]:
        """Inside the context the weights hold the update of a single sequence, for fast decoding.

        Yields the state to go on from. On leaving, the weights are as before, bit for bit. Raises
        ValueError for a batch and for an update that is no change of weights.
        """
        self.require_factors(state)
        with merged(self.targets(), state.update):
            yield State(state.layers)

    def update_penalty(self, state: State) -> Tensor:
        """Mean over sequences of the sum of |dW|_F^2 over all targets; 0 without factors."""
        norms = [f.squared_norm() for block in self._factors(state) for f in block.values()]
        return torch.stack(norms).sum(0).mean() if norms else torch.zeros((), device=self._device())

    def update_ratios(self, state: State) -> dict[str, Tensor]:
        """|dW|_F / |W|_F [B] by "<block>/<target>", detached; empty without factors."""
        blocks = zip(self.targets(), self._factors(state), strict=False)
        with torch.no_grad():
            return {
                f"{n}/{name}": f.squared_norm().sqrt() / targets[name].weight.norm()
                for n, (targets, factors) in enumerate(blocks)
                for name, f in factors.items()
            }

    def auxiliary_losses(
        self,
        batch: dict[str, Tensor],
        prompt: State,
        state: State,
        logits_BLV: Tensor,
        options: Any,
    ) -> dict[str, Tensor]:
        """The extra terms that `options` (train/options.py) ask for: `losses.auxiliary`."""
        return losses.auxiliary(self, batch, prompt, state, logits_BLV, options)

    def state_bytes(self, length: int) -> int:
        """Bytes of the recurrent state and of the update of one sequence, float32."""
        return self.base.state_bytes(length) + 4 * self.generator.session_floats()

    def mixers(self) -> list[Any]:
        """The base's layers."""
        return self.base.mixers()

    def require_factors(self, state: State) -> None:
        """Raise ValueError for a state without low-rank factors."""
        if not self.generator.has_factors or state.update is None:
            found = "no update" if state.update is None else self.options.generator
            raise ValueError(f"state: found {found}; allowed: one with low-rank factors")

    def _factors(self, state: State) -> Any:
        return state.update if self.generator.has_factors and state.update is not None else []

    def _hooks(self, update: Any) -> Any:
        if update is None and not self.generator.always_on:
            return []
        return self.generator.hooks(self.backbone, update)

    def _points(self, input_ids_BL: Tensor, mask_BL: Tensor | None) -> Points:
        parts = prefixes(input_ids_BL, mask_BL, self.generator.checkpoints)
        states = [self.base(ids, mask_BL=mask).state for ids, mask in parts]
        return Points([self.backbone.read(state.layers) for state in states])

    def _device(self) -> torch.device:
        return next(self.generator.parameters()).device
