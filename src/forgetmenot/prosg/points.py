"""Beginnings of a batch of prompts, for states at several points of them (G5)."""

import torch


def prefixes(
    ids_BL: torch.Tensor, mask_BL: torch.Tensor | None, points: int
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The first j / points of every prompt, j = 1 .. points - 1, with their masks.

    With a mask, prompts are left-padded, here as well as in what is returned: int64 and bool
    [B, P]. A part of a token counts as one. Each beginning is read again from its start: with rows
    of different lengths a pass that goes on from the last point would need padding in the middle.
    """
    width = ids_BL.shape[1]
    if mask_BL is None:
        return [(ids_BL[:, : -(-width * j // points)], None) for j in range(1, points)]
    length_B = mask_BL.sum(1)
    place_P = torch.arange(width, device=ids_BL.device)
    parts: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for j in range(1, points):
        kept_B = (length_B * j + points - 1) // points
        # right-aligned: position p of the prefix is position p - (length - kept) of the whole
        source_BP = (place_P - (length_B - kept_B)[:, None]).clamp(min=0)
        parts.append((ids_BL.gather(1, source_BP), place_P >= (width - kept_B)[:, None]))
    return parts
