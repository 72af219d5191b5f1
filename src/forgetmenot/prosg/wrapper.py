"""ProSG around an RNN: the state after the prompt becomes a temporary change of the weights.

A from-scratch implementation of the method as the abstract of arXiv 2311.01981 describes it; the
details are ours.
"""

from typing import Any

import torch
from torch import nn

from forgetmenot.model import LanguageModel, Output, State
from forgetmenot.prosg.apply import applied, clipped
from forgetmenot.prosg.generator import Generator
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.readout import read_state


class ProSG(nn.Module):
    """A language model whose generation runs on weights changed by its prompt.

    Reading a prompt uses the weights as they are. `commit_prompt` turns the state after it into an
    update that travels in the state: dropping the state drops the update.
    """

    def __init__(self, base: LanguageModel, options: Options) -> None:
        super().__init__()
        self.base, self.options = base, options
        self.spec = base.spec
        shapes = [
            {name: (linear.out_features, linear.in_features) for name, linear in block.items()}
            for block in self.targets()
        ]
        self.generator = Generator(base.spec["hidden"], shapes, options)

    def targets(self) -> list[dict[str, nn.Linear]]:
        """The adapted linear maps of every block. Raises ValueError when the base has none."""
        layers = zip(self.base.spec["layers"], self.base.layers, strict=True)
        blocks = [m for (name, _), m in layers if name == self.options.target_mixer]
        found: list[dict[str, nn.Linear]] = []
        for block in blocks:
            linears = {n: m for n, m in block.named_children() if isinstance(m, nn.Linear)}
            for name in self.options.targets:
                if name not in linears:
                    allowed = ", ".join(linears)
                    raise ValueError(f"targets: found {name!r}; allowed: {allowed}")
            found.append({name: linears[name] for name in self.options.targets})
        if not found:
            raise ValueError(f"target_mixer: found no {self.options.target_mixer!r} in the model")
        return found

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
        input_ids_BL: torch.Tensor,
        state: State | None = None,
        *,
        mask_BL: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        need_state: bool = True,
    ) -> Output:
        """As `LanguageModel.forward`; a state with an update runs on the changed weights."""
        options = {"mask_BL": mask_BL, "cu_seqlens": cu_seqlens, "need_state": need_state}
        if state is None or state.update is None:
            return self.base(input_ids_BL, state, **options)
        with applied(self.targets(), state.update):
            out = self.base(input_ids_BL, State(state.layers), **options)
        new = None if out.state is None else State(out.state.layers, state.update)
        return out._replace(state=new)

    def commit_prompt(self, state: State) -> State:
        """The state after the prompt, with the update made from it; clipped at inference."""
        update = self.generator(read_state(state.layers))
        if not self.training:
            update = clipped(self.targets(), update, self.options.clip)
        return State(state.layers, update)

    def update_penalty(self, state: State) -> torch.Tensor:
        """Mean over sequences of the sum of |dW|_F^2 over all targets."""
        norms = [f.squared_norm() for block in state.update for f in block.values()]
        return torch.stack(norms).sum(0).mean()

    def state_bytes(self, length: int) -> int:
        """Bytes of the recurrent state and of the factors of one sequence, float32."""
        rank = self.options.rank
        widths = sum(sum(m.weight.shape) for block in self.targets() for m in block.values())
        return self.base.state_bytes(length) + 4 * rank * widths

    def mixers(self) -> list[Any]:
        """The base's layers."""
        return self.base.mixers()
