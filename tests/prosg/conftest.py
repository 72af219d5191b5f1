"""Small models of every backbone, with and without ProSG."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgetmenot.model import build

# One block of each backbone that ProSG knows; hidden width 12.
BLOCKS: dict[str, list[list[Any]]] = {
    "rwkv4": [["rwkv4_time", {}], ["rwkv4_channel", {"width": 24}]],
    "rwkv7": [
        [
            "rwkv7_time",
            {"heads": 2, "head_dim": 6, "decay_rank": 4, "rate_rank": 4, "gate_rank": 4},
        ],
        ["rwkv7_channel", {"width": 24}],
    ],
    "retnet": [["retention", {"heads": 2, "key_dim": 4}], ["swiglu", {"width": 16}]],
    "gdn": [["gdn", {"heads": 2, "key_dim": 4, "value_dim": 6}], ["swiglu", {"width": 16}]],
}
VECTOR_GENERATORS = ["g1", "g4", "g5", "static", "frozen_read", "offset", "wide"]
MATRIX_GENERATORS = ["g1", "g2", "g3", "g4", "g5", "static", "frozen_read", "offset", "wide"]
CASES = [
    (backbone, generator)
    for backbone in BLOCKS
    for generator in (VECTOR_GENERATORS if backbone == "rwkv4" else MATRIX_GENERATORS)
]
DEFAULTS = {"rwkv4": "g1", "rwkv7": "g2", "retnet": "g2", "gdn": "g2"}  # specification, 6.2
Make = Callable[..., Any]


def spec(backbone: str, prosg: dict[str, Any] | None, layers: int = 2) -> dict[str, Any]:
    return {
        "hidden": 12,
        "vocab": 31,
        "layers": BLOCKS[backbone] * layers,
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "tie_embeddings": True,
        "init_std": None,
        "prosg": prosg,
    }


def make_plain(backbone: str) -> Any:
    """The base alone, float64, eval mode, of seed 0."""
    made = build(spec(backbone, None)).double().eval()
    made.init_parameters(0)
    return made


def make_prosg(backbone: str, generator: str = "g1", layers: int = 2, **options: Any) -> Any:
    """The base of `make_plain` with ProSG as before training."""
    small = {"rank": 3, "width": 8, "generator": generator, **options}
    made = build(spec(backbone, small, layers)).double().eval()
    made.init_parameters(0)
    return made


def stir(made: Any) -> Any:
    """With every parameter that starts at zero away from it, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return made


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backbone and a generator that can read it."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(params=BLOCKS)
def backbone(request: pytest.FixtureRequest) -> str:
    """A backbone."""
    name: str = request.param
    return name


@pytest.fixture
def fresh() -> Make:
    """`make_prosg`."""
    return make_prosg


@pytest.fixture
def plain() -> Make:
    """`make_plain`."""
    return make_plain


@pytest.fixture
def trained() -> Make:
    """`make_prosg`, stirred."""
    return lambda *args, **options: stir(make_prosg(*args, **options))


@pytest.fixture
def default_generator() -> dict[str, str]:
    """The generator that the specification names for each backbone."""
    return DEFAULTS


@pytest.fixture
def prompt_BP() -> torch.Tensor:
    """Two prompts of ten tokens."""
    return torch.arange(20).view(2, 10) % 31


@pytest.fixture
def body_BL() -> torch.Tensor:
    """Two bodies of twelve tokens."""
    return torch.arange(5, 29).view(2, 12) % 31
