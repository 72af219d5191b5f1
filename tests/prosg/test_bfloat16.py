"""A thousand training steps under bfloat16 autocast stay finite (construction 6.10)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def test_no_nan_over_a_thousand_steps(
    backbone: str, fresh: Callable[..., Any], default_generator: dict[str, str]
) -> None:
    made = fresh(backbone, default_generator[backbone], rank=2, width=4, layers=1).float().train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2, fused=True)
    ids_NBL = torch.randint(31, (1000, 2, 4), generator=torch.Generator().manual_seed(0))
    losses = []
    for step, ids_BL in enumerate(ids_NBL):
        made.base.requires_grad_(step < 100)  # jointly, then the generator alone, which is faster
        with torch.autocast("cpu", dtype=torch.bfloat16):
            state = made.commit_prompt(made(ids_BL[:, :2]).state)
            out = made(ids_BL[:, 2:3], state, need_state=False)
        losses.append(F.cross_entropy(out.logits_BLV[:, -1].float(), ids_BL[:, 3]))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    factors = next(iter(state.update[0].values()))
    assert factors.left_BOR.dtype == factors.right_BIR.dtype == torch.float32
    assert factors.left_BOR.abs().sum() > 0
    assert torch.isfinite(torch.stack(losses)).all()
    assert all(torch.isfinite(parameter).all() for parameter in made.parameters())
