"""The training loop: the weights are a function of (options, data, seed), resumable at any step."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from forgetmenot.errors import UserError
from forgetmenot.train import checkpoint, failure, objective
from forgetmenot.train.means import Means
from forgetmenot.train.mixture import Batch, Mixture
from forgetmenot.train.optimizer import AdamW
from forgetmenot.train.options import Options
from forgetmenot.train.progress import Curve, Progress
from forgetmenot.train.quantile_rule import QuantileController
from forgetmenot.train.schedule import learning_rate
from forgetmenot.train.sparsity import SparsityController
from forgetmenot.train.stop import STATUS, stop_requests

CONTROLLERS = {"lambda": SparsityController, "quantile": QuantileController}


class TrainingStep(nn.Module):
    """Model, objective and sparsity pressure as one forward pass.

    A prompted loss calls the model twice; data parallelism wants one forward pass for each
    backward pass, so it wraps this module instead of the model.
    """

    def __init__(self, model: nn.Module, controller: SparsityController, options: Options) -> None:
        super().__init__()
        self.model = model
        self.controller = controller
        self.options = options

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and detached metrics."""
        result = objective.loss(self.model, batch, self.options)
        pressure = self.controller.penalty(result.aux)
        if pressure is None:
            return result.loss, result.metrics
        return result.loss + pressure, {**result.metrics, "l1": pressure.detach()}


class Trainer:
    """One training run.

    `model` is initialised or loaded; its parameters with `requires_grad` are trained in place.
    `work` keeps checkpoints, dumps and the growing curve between attempts; `identity` names what
    is trained, and a checkpoint of another identity is passed over. `name` begins progress lines.
    `log(metrics, step)` gets every line of the curve as flat numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        mixture: Mixture,
        options: Options,
        *,
        accelerator: Accelerator,
        work: Path,
        identity: str,
        name: str = "",
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.options = options
        self.mixture = mixture
        self.accelerator = accelerator
        self.work = work
        self.identity = identity
        self.name = name
        self.log = log
        self.model = model.to(accelerator.device).train()
        self.controller = CONTROLLERS[options.sparsity_rule](model, options)
        self.optimizer = AdamW(model, options)
        self.module = _prepared(TrainingStep(model, self.controller, options), accelerator)
        self.means = Means()
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0

    def run(self, out: Path) -> None:
        """Train to the last step, resuming where `work` allows it; write `out`/curve.jsonl.

        Raises UserError, after a dump in `work`, when a loss or gradient norm is not finite, and
        SystemExit, after a checkpoint, when SIGTERM comes and there are no other ranks.
        """
        self._resume()
        curve = Curve(self.work / "curve.jsonl", self.step) if self._is_main else None
        progress = Progress(self.options.steps, name=self.name)
        started = time.perf_counter() - self.seconds
        logged_seconds, logged_tokens = self.seconds, self.tokens
        batches = self._draw(self.step + 1)
        with stop_requests() as is_asked_to_stop:
            while self.step < self.options.steps:
                norm, batches = self._advance(batches)
                self.seconds = time.perf_counter() - started
                if self._is_due(self.options.log_every):
                    line = self._line(
                        norm, self.seconds - logged_seconds, self.tokens - logged_tokens
                    )
                    logged_seconds, logged_tokens = self.seconds, self.tokens
                    if curve:
                        curve.append(line)
                        progress.update(line, self.seconds / self.step)
                        self.log(flat(line), self.step)
                stop = self.accelerator.num_processes == 1 and is_asked_to_stop()
                if stop or self._is_due(self.options.checkpoint_every):
                    if curve:
                        curve.sync()
                        self._save()
                    self.accelerator.wait_for_everyone()
                if stop and self.step < self.options.steps:
                    print(f"stopped at step {self.step}, to go on from there", file=sys.stderr)
                    raise SystemExit(STATUS)
        if curve:
            curve.close()
            shutil.copyfile(self.work / "curve.jsonl", out / "curve.jsonl")

    @property
    def _is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.options.steps

    def _draw(self, step: int) -> list[Batch]:
        """Draw this rank's micro-batches of optimizer step `step`; none after the last step."""
        if step > self.options.steps:
            return []
        tokens = self.options.tokens_per_step // (
            self.options.accumulate * self.accelerator.num_processes
        )
        return [
            self.mixture.batch(step, tokens, micro=micro, rank=self.accelerator.process_index)
            for micro in range(self.options.accumulate)
        ]

    def _advance(self, batches: list[Batch]) -> tuple[Tensor, list[Batch]]:
        """One optimizer step on `batches`: the gradient norm, and the next step's batches."""
        step = self.step + 1
        self._seed(step)
        self.controller.begin_step(step)
        losses = [
            self._backward(batch, last=micro == len(batches) - 1)
            for micro, batch in enumerate(batches)
        ]
        self.controller.drop_frozen(step)
        self.optimizer.drop_frozen(step)
        norm = self.optimizer.clip()
        # Drawn before the loss is read, so that the host works while the device does.
        following = self._draw(step + 1)
        if not bool(torch.isfinite(torch.stack(losses).sum() + norm)):
            self._fail(step, batches, losses, norm)
        self.optimizer.step(learning_rate(step, self.options))
        self.controller.end_step(step, lambda kept: self.accelerator.reduce(kept, "mean"))
        self.step = step
        return norm, following

    def _seed(self, step: int) -> None:
        torch.manual_seed(self.mixture.torch_seed(step, self.accelerator.process_index))

    def _backward(self, batch: Batch, *, last: bool) -> Tensor:
        """Add one micro-batch's gradients; ranks exchange them with the last one only."""
        tensors = objective.batch_tensors(batch.arrays, self.accelerator.device)
        sync = contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)
        with sync:
            loss: Tensor
            loss, metrics = self.module(tensors)
            self.accelerator.backward(loss / self.options.accumulate)
        if len(self.mixture.sources) > 1:
            named = {f"{key}/{batch.source}": metrics[key] for key in ("loss", "accuracy")}
            metrics = {**metrics, **named}
        self.means.add(metrics)
        shapes = [batch.arrays[key].size for key in ("input_ids", "prompt_ids") if key in tensors]
        self.tokens += sum(shapes) * self.accelerator.num_processes
        return loss.detach()

    def _line(self, norm: Tensor, seconds: float, tokens: int) -> dict[str, Any]:
        """A line of the curve: means since the last line, and the values of this step."""
        on_gpu = self.accelerator.device.type == "cuda"
        memory = {"peak_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            "lr": learning_rate(self.step, self.options),
            "grad_norm": float(norm),
            **memory,
            **self.means.take(),
            **self.controller.report(),
        }

    def _save(self) -> None:
        loop = {f"mean:{name}": total for name, total in self.means.sums.items()}
        loop |= {f"sparsity:{name}": t for name, t in self.controller.state_tensors().items()}
        groups = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_tensors(),
            "loop": loop,
        }
        values = {"tokens": self.tokens, "seconds": self.seconds, "counts": self.means.counts}
        checkpoint.save(
            self.work / "checkpoints",
            checkpoint.Checkpoint(self.step, groups, values),
            self.identity,
        )

    def _resume(self) -> None:
        found = checkpoint.load_newest(
            self.work / "checkpoints",
            self.identity,
            lambda text: print(text, file=sys.stderr, flush=True),
            str(self.accelerator.device),
        )
        if found is None:
            return
        self.model.load_state_dict(found.groups["model"])
        self.optimizer.load_state_tensors(found.groups["optimizer"])
        self.means.restore(_part(found.groups["loop"], "mean:"), found.values["counts"])
        self.controller.load_state_tensors(_part(found.groups["loop"], "sparsity:"))
        self.step = found.step
        self.tokens = found.values["tokens"]
        self.seconds = found.values["seconds"]
        print(f"resumed at step {self.step}/{self.options.steps}", file=sys.stderr, flush=True)

    def _fail(
        self, step: int, batches: list[Batch], losses: list[Tensor], norm: Tensor
    ) -> NoReturn:
        micro = next((i for i, loss in enumerate(losses) if not torch.isfinite(loss)), 0)
        batch = batches[micro]
        rank = self.accelerator.process_index
        path = self.work / (f"dump-step-{step}" + (f"-rank-{rank}" if rank else ""))
        values = {
            "step": step,
            "stream": batch.source,
            "micro_batch": micro,
            "loss": repr(float(losses[micro])),
            "grad_norm": repr(float(norm)),
        }
        tensors = objective.batch_tensors(batch.arrays, self.accelerator.device)

        def forward() -> Any:
            self._seed(step)
            return self.module(tensors)

        failure.dump(path, model=self.model, forward=forward, values=values, arrays=batch.arrays)
        raise UserError(
            f"step {step}: found loss {values['loss']} and gradient norm {values['grad_norm']}, "
            f"allowed: finite; see {path}.json"
        )


def _prepared(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Wrap for data parallelism and autocast, if asked for: preparing costs seconds of imports."""
    if accelerator.num_processes == 1 and accelerator.mixed_precision == "no":
        return module
    prepared: nn.Module = accelerator.prepare(module)
    return prepared


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def flat(line: dict[str, Any]) -> dict[str, float]:
    """A curve line as numbers by name: `kept` of layer 0, head 1 becomes `kept/0/1`."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, list):
            for layer, heads in enumerate(value):
                numbers |= {f"{name}/{layer}/{head}": kept for head, kept in enumerate(heads)}
        elif name != "step":
            numbers[name] = value
    return numbers
