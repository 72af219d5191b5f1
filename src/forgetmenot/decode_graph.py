"""Decoding by single tokens as CUDA graphs: a whole model's step is one launch from the host.

A step over static tensors is captured once for each kind of step there is, and then replayed. Which
kind comes next is known on the host from a counter, so nothing waits for the device.

A mixer whose step is not always the same (LTE scores tokens many at a time) says so by two methods,
on what its state counts on the host: `step_kind(state) -> bool`, which of two kinds of step comes
after `state`; `counted(state) -> state`, the same tensors with the counts one step on. The counts
must come back to where they were.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from forgetmenot.mixers.base import Turn, select_rows
from forgetmenot.model import State

Layers = tuple[Any, ...]
Kind = tuple[bool, ...]  # of each layer


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture `step`, which is not run by that; the function returned runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class DecodeGraph:
    """A model and a state of its own that go on by one token a call, at fixed addresses.

    `input_ids_B1` (int64) is the token that the next step reads: the most probable one after each
    step, so that steps without an argument decode greedily. `logits_BV` (the weights' dtype) are
    those of the last step. Both are overwritten by the next one.
    """

    def __init__(
        self,
        model: Any,
        state: State,
        input_ids_B1: torch.Tensor,
        *,
        record: Callable[[Callable[[], None]], Callable[[], None]] = cuda_graph,
    ) -> None:
        """Capture every kind of step. `state` is used up: its tensors are what steps write to.

        Args:
            model: a LanguageModel in eval mode.
            state: what it remembers, on the same device.
            input_ids_B1: int64, the first token to read; copied.
            record: makes a function that repeats the step it is given; by default a CUDA graph.

        Raises:
            ValueError: a model in training mode, a ProSG update, a device without CUDA graphs, or
                a mixer whose state grows or is no longer in place after a step, by its name.
        """
        if model.training:
            raise ValueError("model: found in training mode; allowed in a decode graph: eval()")
        if model.base is not model or state.update is not None:
            raise ValueError("model: found ProSG; allowed in a decode graph: a plain model")
        if record is cuda_graph and input_ids_B1.device.type != "cuda":
            raise ValueError(f"device: found {input_ids_B1.device}; allowed in CUDA graphs: cuda")
        self._model, self._layers = model, state.layers
        self._mixers = model.mixers()
        self._steps: int | None = 0
        with torch.inference_mode():
            self.input_ids_B1 = input_ids_B1.clone()
            shape = (len(input_ids_B1), model.spec["vocab"])
            self.logits_BV = model.embed.weight.new_zeros(shape)
            self._cycle, before = self._plan()
            self._replay = {}
            for kind, layers in before.items():
                self._rehearse(layers)
                self._replay[kind] = record(self._static_step(layers))

    @torch.inference_mode()
    def step(self, input_ids_B1: torch.Tensor | None = None) -> torch.Tensor:
        """Read a token, by default the most probable one; returns `logits_BV`."""
        if self._steps is None:
            raise ValueError("step: found a graph whose state was given away; allowed: before that")
        if input_ids_B1 is not None:
            self.input_ids_B1.copy_(input_ids_B1)
        self._replay[self._cycle[self._steps % len(self._cycle)]]()
        self._steps += 1
        return self.logits_BV

    def finish(self) -> State:
        """The state after the last step, to go on without the graph, which is used up."""
        if self._steps is None:
            raise ValueError("finish: found a graph whose state was given away; allowed: once")
        layers = self._layers
        for _ in range(self._steps % len(self._cycle)):
            layers = self._counted(layers)
        self._steps = None
        return State(_latest(layers))

    def _plan(self) -> tuple[list[Kind], dict[Kind, Layers]]:
        """The kinds of the steps to come, which repeat, and a state before each kind."""
        cycle: list[Kind] = []
        before: dict[Kind, Layers] = {}
        layers = self._layers
        while not cycle or _numbers(layers) != _numbers(self._layers):
            kind = tuple(
                bool(hasattr(mixer, "step_kind") and mixer.step_kind(state))
                for mixer, state in zip(self._mixers, layers, strict=True)
            )
            before.setdefault(kind, layers)
            cycle.append(kind)
            layers = self._counted(layers)
        return cycle, before

    def _counted(self, layers: Layers) -> Layers:
        return tuple(
            mixer.counted(state) if hasattr(mixer, "counted") else state
            for mixer, state in zip(self._mixers, layers, strict=True)
        )

    def _rehearse(self, layers: Layers) -> None:
        """A step on a copy: kernels are compiled and chosen, and what cannot be captured shows."""
        rows_B = torch.arange(len(self.input_ids_B1), device=self.input_ids_B1.device)
        copied = _latest(select_rows(layers, rows_B))
        found = self._model(self.input_ids_B1, State(copied)).state.layers
        for n, (old, new) in enumerate(zip(self._counted(copied), found, strict=True)):
            if _form(old) != _form(new) or _numbers(old) != _numbers(new):
                raise ValueError(
                    f"layer {n}: found the mixer {self._model.spec['layers'][n][0]!r}, whose state "
                    "grows or is made anew by a step; allowed in a decode graph: mixers whose "
                    "state keeps its size"
                )

    def _static_step(self, layers: Layers) -> Callable[[], None]:
        def step() -> None:
            output = self._model(self.input_ids_B1, State(_latest(layers)))
            logits_BV = output.logits_BLV[:, -1]
            self.logits_BV.copy_(logits_BV)
            self.input_ids_B1.copy_(logits_BV.argmax(-1, keepdim=True))
            # Steps that write in place cost nothing here.
            pairs = zip(tensors(layers), tensors(output.state.layers), strict=True)
            for static, new in pairs:
                if new.data_ptr() != static.data_ptr():
                    static.copy_(new)

        return step


def tensors(state: Any) -> Iterator[torch.Tensor]:
    """The tensors of a state, in their order."""
    return (leaf for leaf in _leaves(state) if isinstance(leaf, torch.Tensor))


def _numbers(state: Any) -> list[int]:
    """What a state counts on the host, but for its turn."""
    return [leaf for leaf in _leaves(state) if isinstance(leaf, int)]


def _form(state: Any) -> list[Any]:
    """Shapes and dtypes, and the turns themselves: a step in place goes on with them."""
    return [
        (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
        for leaf in _leaves(state)
        if isinstance(leaf, torch.Tensor | Turn)
    ]


def _leaves(state: Any) -> Iterator[Any]:
    if isinstance(state, tuple | list):
        names = getattr(state, "_fields", [""] * len(state))
        for name, part in zip(names, state, strict=True):
            if name != "at":  # of the turn
                yield from _leaves(part)
    else:
        yield state


def _latest(state: Any) -> Any:
    """The same state as the latest of its turns: a replay is not counted by them."""
    if not isinstance(state, tuple):
        return state
    parts = [_latest(part) for part in state]
    if not hasattr(state, "_fields"):
        return tuple(parts)
    made: Any = type(state)(*parts)
    return made._replace(at=made.turn.count) if hasattr(made, "turn") else made
