"""The generator that the options name."""

import dataclasses
from typing import Any

import torch

from forgetmenot.prosg.backbone import Backbone
from forgetmenot.prosg.cross_layer import CrossLayer
from forgetmenot.prosg.dense import Dense
from forgetmenot.prosg.frozen_read import FrozenRead
from forgetmenot.prosg.generator import Generator
from forgetmenot.prosg.multi_point import MultiPoint
from forgetmenot.prosg.offset import Offset
from forgetmenot.prosg.options import Options
from forgetmenot.prosg.probe import Probe
from forgetmenot.prosg.static import Static
from forgetmenot.prosg.svd import Svd
from forgetmenot.prosg.wide import Wide

GENERATORS = {
    "g1": Dense,
    "g2": Probe,
    "g3": Svd,
    "g4": CrossLayer,
    "g5": MultiPoint,
    "static": Static,
    "frozen_read": FrozenRead,
    "offset": Offset,
}


def make_generator(backbone: Backbone, options: Options) -> Generator:
    """A generator with fresh parameters. Raises ValueError for options unfit for the backbone.

    Rivals get as many parameters as the generator `options.matched`: `wide` in its units;
    `frozen_read` and `offset` in their reads, unless the options say how many.
    """
    if options.generator == "wide":
        return Wide(backbone, _size(backbone, options, generator=options.matched))
    if options.generator in ("frozen_read", "offset") and options.reads is None:
        one, two = (_size(backbone, options, reads=reads) for reads in (1, 2))
        more = (_size(backbone, options, generator=options.matched) - one) / (two - one)
        options = dataclasses.replace(options, reads=1 + max(0, round(more)))
    return GENERATORS[options.generator](backbone, options)


def _size(backbone: Backbone, options: Options, **change: Any) -> int:
    """Parameters of the generator of changed options."""
    with torch.random.fork_rng(devices=[]):
        made = make_generator(backbone, dataclasses.replace(options, **change))
    return sum(parameter.numel() for parameter in made.parameters())
