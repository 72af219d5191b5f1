"""Small instances of every mixer; a new mixer must be added here to pass test_contract."""

from typing import Any

import pytest

HIDDEN = 24
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"heads": 4, "kv_heads": 2, "head_dim": 8},
        {"heads": 4, "kv_heads": 4, "head_dim": 8, "window": 7},
        {"heads": 2, "kv_heads": 1, "head_dim": 8, "window": 1, "rope_theta": None},
    ],
    "gdn": [{"heads": 2, "key_dim": 8, "value_dim": 12}],
    "lte": [
        {"heads": 4, "kv_heads": 2, "head_dim": 8, "window": 9, "sink": 2, "budget": 7},
        {"heads": 2, "kv_heads": 2, "head_dim": 8, "window": 6, "sink": 0, "budget": None},
    ],
    "rwkv4_channel": [{"width": 40}],
    "rwkv4_time": [{}],
    "swiglu": [{"width": 40}],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `mixer_case` (name, options) for every instance above."""
    if "mixer_case" in metafunc.fixturenames:
        cases = [(name, options) for name, many in OPTIONS.items() for options in many]
        ids = [f"{name}-{n}" for n, (name, _) in enumerate(cases)]
        metafunc.parametrize("mixer_case", cases, ids=ids)
