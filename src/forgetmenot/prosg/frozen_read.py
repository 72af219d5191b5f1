"""Rival: a frozen copy of the state after the prompt that every later token can read."""

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.reader import ReadingGenerator, layer_normed
from forgetmenot.prosg.readout import Read


class FrozenRead(ReadingGenerator):
    """o_t + gate * read(S_prompt, query_t) (construction 6.7, rival 5).

    ProSG's update is a function of S_prompt, so one copy of it is the fair memory to compare with
    (specification, fact F2). W_out starts at zero: before training nothing changes.
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super().__init__()
        layout = backbone.layout
        if layout.heads:  # the matrix alone: token shifts are no memory
            layout = layout._replace(parts=0, width=0)
        self.layout = layout
        self._make_readers(backbone, layout, options.reads, normed=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Outputs zero, the rest as `Reader` does."""
        for reader in self.all_readers():
            reader.reset(out=False)

    def make(self, checkpoints: list[list[Read]]) -> list[Read]:
        """The read-outs themselves, normalised."""
        if self.layout.heads:
            return [read._replace(vectors_BPD=None) for read in checkpoints[-1]]
        return [read.map(layer_normed) for read in checkpoints[-1]]

    def session_floats(self) -> int:
        """One copy of the read-out."""
        parts, width, heads, value, key = self.layout
        return len(self.readers) * (parts * width + heads * value * key)
