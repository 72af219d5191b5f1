"""What `generate()` carries from step to step: our model's state, as a transformers cache."""

from typing import Any, NoReturn

import torch
from transformers.cache_utils import Cache

from forgetmenot.mixers.base import select_rows
from forgetmenot.model import State


class ForgetmenotCache(Cache):
    """The state of a batch of sequences; empty until the first forward pass.

    Like the state, it is used up by the call that continues it: the call changes it. Branch with
    `copy.deepcopy`. It cannot be cut back, because a recurrent or evicting state has forgotten.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: State | None = None
        self.seen = 0
        self.rows = -1

    def advance(self, state: State, input_ids_BL: torch.Tensor) -> None:
        """Take the state after the tokens `input_ids_BL` (padding counts as tokens here)."""
        rows, length = input_ids_BL.shape
        self.state, self.seen, self.rows = state, self.seen + length, rows
        self.device = input_ids_BL.device

    def __len__(self) -> int:
        return 0 if self.state is None else len(self.state.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sequences={self.rows}, tokens={self.seen})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, padding included: what `attention_mask` covers."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit."""
        return -1

    @property
    def batch_size(self) -> int:
        """Number of sequences; -1 while empty."""
        return self.rows

    @property
    def is_initialized(self) -> bool:
        """Whether a forward pass has filled it."""
        return self.state is not None

    @property
    def is_compileable(self) -> bool:
        """False: states are not of one fixed shape."""
        return False

    @property
    def is_croppable(self) -> bool:
        """False."""
        return False

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen, self.rows = None, 0, -1

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep sequence `indices[b]` (int64) as sequence b."""
        if self.state is not None:
            self.state = select_rows(self.state, indices)
            self.rows = len(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Give beam b the past of beam `beam_idx[b]`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence `repeats` times in place."""
        if self.state is not None:
            index_B = torch.arange(self.rows, device=self.device)
            self.batch_select_indices(index_B.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError(
            "crop: the state of a forgetmenot model cannot be cut back; allowed: decoding that "
            "never takes tokens back (not assisted or speculative), or a copy.deepcopy before"
        )

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise NotImplementedError: there are no keys and values per layer to add."""
        raise NotImplementedError("update: a forgetmenot cache holds states; see `advance`")
