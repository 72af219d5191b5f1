import io
import json
from pathlib import Path
from typing import Any

from forgetmenot.train.progress import Curve, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 2.5, "accuracy": 0.5, "tokens_per_second": 1234.0}


def test_opening_the_curve_again_drops_later_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    curve = Curve(path, 0)
    for step in (2, 4, 6):
        curve.append({"step": step})
    curve.close()
    path.write_text(path.read_text() + '{"step": 5')
    again = Curve(path, 4)
    again.append({"step": 6})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6]


def test_a_new_run_starts_an_empty_curve(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 1}\n')
    Curve(path, 0).close()
    assert path.read_text() == ""


def test_a_log_gets_whole_lines_the_first_and_the_last() -> None:
    out = io.StringIO()
    progress = Progress(3, out)
    for step in (1, 2, 3):
        progress.update(_line(step), seconds_per_step=2.0)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"]
    assert "4 s left" in lines[0]
    assert "1,234 tokens/s" in lines[0]
    assert "\r" not in out.getvalue()


def test_a_terminal_gets_one_line_rewritten() -> None:
    out = Terminal()
    progress = Progress(3, out)
    for step in (1, 3):
        progress.update(_line(step), seconds_per_step=2.0)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().count("\r") == 2


def test_lines_begin_with_the_name_of_the_job() -> None:
    out = io.StringIO()
    Progress(3, out, name="smoke/recall/gdn/seed0").update(_line(3), seconds_per_step=2.0)
    assert out.getvalue().startswith("smoke/recall/gdn/seed0  step 3/3")
