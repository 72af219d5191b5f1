"""What is asked of the operators, whether it is met, and the benchmark's table."""

from typing import Any

FORWARD, BOTH, STEPS = "forward", "forward+backward", "stack of steps"
# milliseconds on an H100; NSA's are for compression and selection, hence a window of one token
TARGETS = {
    ("lte_attention", "b4-t4096", FORWARD): 0.25,
    ("lte_attention", "b4-t4096", BOTH): 0.75,
    ("lte_attention", "b1-t32768", BOTH): 3.6,
    ("gated_delta_rule", "b4-t4096", FORWARD): 0.4,
    ("gated_delta_rule", "b4-t4096", BOTH): 1.6,
    ("nsa_attention", "b4-t4096-w1", FORWARD): 0.9,
    ("nsa_attention", "b4-t4096-w1", BOTH): 4.0,
}
FIRST_CALL = {"gated_delta_rule": 10.0}  # seconds, compilation included
# a step over 32K tokens may take as long as one over 1K, give or take this part
EQUAL = 0.05
CONTENDERS = {"ours": "ours", "dense": "flash", "flex": "Flex", "plain": "plain"}


def judge(row: dict[str, Any], rows: list[dict[str, Any]], ceilings: dict[str, float]) -> None:
    """Add the rates, their shares of the ceilings, the target and whether it is met."""
    took = row["ours"][0] if "ours" in row else None
    for unit, amount in (("tflops", row["flops"]), ("tbs", row["bytes"])):
        row[unit] = amount / took / 1e9 if took else None
        row[f"{unit}_share"] = row[unit] / ceilings[unit] if took else None
    target = TARGETS.get((row["op"], row["shape"], row["pass"]))
    if row["op"] == "lte_decode_step" and row["shape"].endswith("-c32768"):
        short = row["shape"].replace("-c32768", "-c1024")
        others = [r for r in rows if (r["op"], r["shape"]) == (row["op"], short) and "ours" in r]
        target = (1 + EQUAL) * others[0]["ours"][0] if others else None
    row["target"] = target
    row["met"] = took is not None and took <= target if target else None


def table(found: dict[str, Any]) -> str:
    """The measurement as text."""
    top = found["ceilings"]
    text = [
        f"kernels: {found['dtype']} on {found['device']}, medians of milliseconds, caches flushed; "
        f"ceilings: {top['tflops']:.0f} TFLOP/s (8192^3 product), {top['tbs']:.2f} TB/s (copy)",
        f"{'operator':<22} {'shape':<11} {'pass':<17}"
        + "".join(f"{name:>9}" for name in CONTENDERS.values())
        + f"{'target':>9} {'':<7}{'TFLOP/s':>8} {'share':>5} {'TB/s':>6} {'share':>5}",
    ]
    for row in found["rows"]:
        text += lines(row)
    text.append(
        "flash: PyTorch's dense flash attention of the same shape (a step: over the whole context);"
        " Flex: compiled FlexAttention, same mask, made before; plain: the PyTorch form on the GPU"
    )
    for name, call in found["first_calls"].items():
        took = f"{call['seconds']:.1f} s, target {call['target']:.0f} s"
        text.append(f"first call of {name}, compilation included: {took}")
    text += [f"{name}: not shown: {reason}" for name, reason in found["refused"].items()]
    return "\n".join(text)


def lines(row: dict[str, Any]) -> list[str]:
    """One timed call as text, and why a contender has no time."""
    verdict = {None: "", True: "met", False: "missed"}[row["met"]]
    times = "".join(f"{_ms(row.get(name)):>9}" for name in CONTENDERS)
    target = f"{row['target']:.3f}" if row["target"] else ""
    rates = ""
    if "ours" in row:
        rates = (
            f"{row['tflops']:>8.1f} {row['tflops_share']:>5.0%} "
            f"{row['tbs']:>6.2f} {row['tbs_share']:>5.0%}"
        )
    call = f"{row['op']:<22} {row['shape']:<11} {row['pass']:<17}"
    notes = [f"    {name}: no time: {note}" for name, note in row["notes"].items()]
    return [f"{call}{times}{target:>9} {verdict:<7}{rates}", *notes]


def _ms(times: list[float] | None) -> str:
    return "-" if times is None else f"{times[0]:.3f}"
