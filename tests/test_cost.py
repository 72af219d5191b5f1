"""Costs: equal to those that follow from the paper's widths (LTE specification, section 1.2)."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from forgetmenot import cost, variants
from forgetmenot import model as models
from forgetmenot.cli import cost as command

VOCAB, LAYERS, HEAD = 32_000, 24, 64
WINDOW, BUDGET, SWA = 769, 512, 1024
SCORER = 32_385  # parameters of a head
SCORED_AT_ONCE = 32


@dataclass(frozen=True)
class Paper:
    """A size: width, SwiGLU's width, query and KV heads, width of GDN's heads, embeddings."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    gdn_width: int
    embeddings: int

    def attention(self, heads: int, kv_heads: int) -> int:
        return 2 * self.hidden * HEAD * (heads + kv_heads)

    def gdn(self) -> int:
        qkv_gate_out = 5 * self.hidden * 8 * self.gdn_width
        convolutions = 3 * 8 * self.gdn_width * 4
        return qkv_gate_out + convolutions + 2 * self.hidden * 8 + 2 * 8 + self.gdn_width

    def mixer(self, name: str) -> int:
        own = self.attention(self.heads, self.kv_heads)
        return {
            "gdn": self.gdn(),
            "attn": own,
            "swa": own,
            "lte": own + self.kv_heads * SCORER,
            "nsa": self.attention(32, 2) + self.hidden * 3 * 32,
        }[name]

    def parameters(self, mixers: tuple[str, ...]) -> int:
        block = 3 * self.hidden * self.inner + 2 * self.hidden
        rest = self.embeddings * VOCAB * self.hidden + self.hidden
        share = LAYERS // len(mixers)
        return rest + LAYERS * block + share * sum(self.mixer(name) for name in mixers)


PAPER = {
    "0.4B": Paper(1024, 2816, 16, 16, 128, 1),
    "1.4B": Paper(2048, 5632, 32, 8, 256, 2),
}
MIXERS = {
    "transformer": ("attn",),
    "gdn": ("gdn",),
    "gdn_swa": ("gdn", "swa"),
    "gdn_attn": ("gdn", "attn"),
    "gdn_lte": ("gdn", "lte"),
    "gdn_nsa": ("gdn", "nsa"),
    "nsa": ("nsa",),
}
MILLIONS = {
    "0.4B": dict(zip(MIXERS, (341.1, 367.0, 354.0, 354.0, 360.2, 358.4, 349.8), strict=True)),
    "1.4B": dict(
        zip(MIXERS, (1213.3, 1466.3, 1339.8, 1339.8, 1342.9, 1323.3, 1180.3), strict=True)
    ),
}
# State of one layer in elements, as the specification counts it; NSA and attention at 4,096.
ELEMENTS = {
    "0.4B": {
        "gdn": 131_072 + 12_288,
        "swa": 2_097_152,
        "lte": 2_623_488 + 20_496,
        "nsa": 1_048_576,
        "attn": 8_388_608,
    },
    "1.4B": {
        "gdn": 524_288 + 24_576,
        "swa": 1_048_576,
        "lte": 1_311_744 + 10_248,
        "nsa": 1_048_576,
        "attn": 4_194_304,
    },
}


def extra(name: str, size: Paper) -> int:
    """Elements of a layer's state at 4,096 tokens beyond the specification's count."""
    return {
        # The convolutions keep the 3 inputs that are needed again, not 4.
        "gdn": -3 * 8 * size.gdn_width,
        # Keys before rotation and values that scores still wait for: 6 tokens on either side and
        # those that are scored at once.
        "lte": (12 + SCORED_AT_ONCE) * size.kv_heads * 2 * HEAD,
        # The means of blocks of 64 keys and values.
        "nsa": 4096 // 64 * 2 * 2 * HEAD,
    }.get(name, 0)


@pytest.fixture(scope="module", params=PAPER)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def costs(size: str) -> dict[str, cost.Cost]:
    entries = variants.library()
    return {
        name: cost.of(variants.spec(name, size, VOCAB, entries), (0, 1023, 4096, 32768))
        for name in MIXERS
    }


@pytest.mark.parametrize("name", MIXERS)
def test_parameters(costs: dict[str, cost.Cost], size: str, name: str) -> None:
    found = costs[name].parameters
    assert found == PAPER[size].parameters(MIXERS[name])
    assert round(found / 1e6, 1) == MILLIONS[size][name]


@pytest.mark.parametrize("name", MIXERS)
def test_state(costs: dict[str, cost.Cost], size: str, name: str) -> None:
    layers = [(mixer, LAYERS // len(MIXERS[name])) for mixer in MIXERS[name]]
    elements = sum(n * (ELEMENTS[size][m] + extra(m, PAPER[size])) for m, n in layers)
    assert costs[name].state_bytes[4096] == 4 * elements
    grows = {"attn", "nsa"} & set(MIXERS[name])
    assert (costs[name].state_bytes[32768] > 4 * elements) == bool(grows)


@pytest.mark.parametrize("name", MIXERS)
def test_flops_grow_with_what_a_token_reads(
    costs: dict[str, cost.Cost], size: str, name: str
) -> None:
    paper = PAPER[size]

    def tokens(mixer: str, context: int) -> int:
        if mixer == "nsa":  # means, the current block and 15 others, and the window
            chosen = context % 64 + 1 + min(15, context // 64) * 64
            return 32 * ((context + 1) // 64 + chosen + min(512, context + 1))
        limit = {"gdn": 0, "swa": SWA, "lte": WINDOW + BUDGET, "attn": 10**6}[mixer]
        return paper.heads * min(limit, context + 1)

    share = LAYERS // len(MIXERS[name])
    flops = costs[name].flops_per_token
    for context in (1023, 4096, 32768):
        read = sum(share * (tokens(m, context) - tokens(m, 0)) for m in MIXERS[name])
        assert flops[context] - flops[0] == 4 * HEAD * read


def test_flops_of_a_token_are_those_that_torch_counts() -> None:
    spec = variants.spec("transformer", "recall-2l-d64", 50, variants.library())
    model = models.build(spec).eval()
    # The counter does not know the fused attention of a CPU.
    math = sdpa_kernel(SDPBackend.MATH)
    with math, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long))
    assert counter.get_total_flops() == cost.of(spec, [0]).flops_per_token[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gdn", "(a)"),
        ("gdn_swa", "(a) + (b)"),
        ("gdn_lte", "(a) + (b)"),
        ("gdn_nsa", "(a) + (c)"),
        ("gdn_attn", "(a) + (d)"),
        ("nsa", "(c)"),
        ("transformer", "(d)"),
    ],
)
def test_kinds_are_the_levels_of_the_hierarchy(name: str, kind: str) -> None:
    assert cost.kind(variants.spec(name, "0.4B", VOCAB, variants.library())) == kind


@pytest.mark.parametrize("name", ["rwkv4", "rwkv7"])
def test_rnns_are_linear_attention(name: str) -> None:
    assert cost.kind({"layers": [[f"{name}_time", {}], [f"{name}_channel", {}]]}) == "(a)"
    assert cost.kind({"layers": [["retention", {}], ["swiglu", {}]]}) == "(a)"


def test_a_mixer_that_the_hierarchy_does_not_know_is_said_to_be_another() -> None:
    assert cost.kind({"layers": [["gdn", {}], ["mine", {}], ["swiglu", {}]]}) == "(a) + (other)"


def test_json_of_the_paper_s_variants(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    monkeypatch.setattr(
        models, "build", lambda spec, build=models.build: built.append(build(spec)) or built[-1]
    )
    assert command.main(["--size", "0.4B", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(MIXERS)
    for values in found.values():
        assert set(values["state_bytes"]) == {"1024", "4096", "32768"}
        assert set(values["flops_per_token"]) == {"1024", "4096", "32768"}
    assert found["gdn"]["parameters"] == PAPER["0.4B"].parameters(("gdn",))
    assert len(built) == len(found)
    assert all(parameter.is_meta for model in built for parameter in model.parameters())


def test_table_of_chosen_variants(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "recall-2l-d64", "--vocab", "64", "--contexts", "8", "100"]
    assert command.main([*size, "--variants", "transformer", "gdn"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "state KiB @100" in head
    assert rows[0].split() == [
        "transformer", "(d)", "86,336", "8.0", "100.0", *rows[0].split()[-2:]
    ]  # fmt: skip
    assert rows[1].startswith("gdn ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "7B"], "size (or 0.4B, 1.4B): found '7B'; allowed: language-20m"),
        (["--size", "0.4B", "--variants", "gru"], "variant: found 'gru'; allowed: "),
        (
            ["--size", "recall-2l-d64", "--variants", "rwkv4"],
            "rwkv4.yaml: ffn: found 'rwkv4_channel'; allowed: attn",
        ),
        (["--size", "0.4B", "--vocab", "0"], "vocab: found 0; allowed: 1 or more"),
        (["--size", "0.4B", "--contexts", "-5"], "contexts: found -5; allowed: 1 or more"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
