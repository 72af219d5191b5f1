"""Results travel as small files, prove themselves on arrival, and count as done."""

import bz2
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from forgetmenot import manifest
from forgetmenot.batch import Jobs
from forgetmenot.cli import report
from forgetmenot.code_hash import code_hash
from forgetmenot.errors import UserError
from forgetmenot.files import write_json, write_text
from forgetmenot.report import pack, publish
from forgetmenot.report.training import WEIGHTS
from forgetmenot.stage import Job, run_stage

KEY = "smoke/recall/gdn/seed0"
TRAIN, TASK, DATA = f"results/{KEY}/train", f"results/{KEY}/recall", "data/built/mqar"


def request(stage: str, out: str, inputs: dict[str, str]) -> Path:
    roots = ["forgetmenot.errors"]
    values = {
        "stage": stage, "name": out, "out": out, "work": f"work/{out}", "inputs": inputs,
        "spec": {"of": out}, "seed": 0, "code": code_hash(*roots), "code_roots": roots,
        "tracking": None, "tags": {},
    }  # fmt: skip
    path = Path("work/requests", f"{out}.json")
    write_json(path, values)
    return path


def make(stage: str, out: str, inputs: dict[str, str], files: dict[str, bytes]) -> None:
    def main(job: Job) -> None:
        for name, content in files.items():
            path = job.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    run_stage(main, request(stage, out, inputs))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with data, a trained model and its evaluation, all finished."""
    folder = tmp_path / "one"
    folder.mkdir()
    monkeypatch.chdir(folder)
    header = json.dumps({"w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"0" * 48
    make("data", DATA, {}, {"train.bin": b"tokens"})
    make("train", TRAIN, {"mqar": DATA}, {WEIGHTS: weights, "config.json": b"{}"})
    task = {"results.json": b'{"metrics": []}', "samples.jsonl": b'{"id": 0}\n', "sub/a.txt": b"a"}
    make("evaluate", TASK, {"model": TRAIN, "data": DATA}, task)
    return folder


@pytest.fixture
def arrived(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another project folder, after packing in the first one and unpacking here."""
    pack.pack("smoke", tmp_path / "small.tar.gz")
    folder = tmp_path / "two"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert pack.unpack(tmp_path / "small.tar.gz") == (3, 0, 0)
    return folder


def never(job: Job) -> None:
    raise AssertionError(f"{job.name} ran")


def test_everything_but_weights_and_data_arrives(machine: Path, arrived: Path) -> None:
    def contents(root: Path) -> dict[str, bytes]:
        files = [path for top in pack.ROOTS for path in (root / top).rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    before, after = contents(machine), contents(arrived)
    left = {f"{TRAIN}/{WEIGHTS}", f"{DATA}/train.bin"}
    lists = {f"{folder}/{manifest.ABSENT}" for folder in (TRAIN, DATA)}
    assert set(after) == set(before) - left | lists
    assert {name: after[name] for name in after if name not in lists} == {
        name: before[name] for name in before if name not in left
    }
    assert json.loads(after[f"{TRAIN}/{manifest.ABSENT}"]) == {WEIGHTS: {"parameters": 12}}
    stamps = [arrived / folder / manifest.STAMP for folder in (DATA, TRAIN, TASK)]
    assert len({path.stat().st_mtime_ns for path in stamps}) == 1


def test_what_arrived_counts_as_done(arrived: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(never, request("data", DATA, {}))
    run_stage(never, request("train", TRAIN, {"mqar": DATA}))
    run_stage(never, request("evaluate", TASK, {"model": TRAIN, "data": DATA}))
    assert capsys.readouterr().out.count("recognised") == 3


def test_other_code_or_options_are_not_done_and_name_what_stayed_behind(arrived: Path) -> None:
    path = request("evaluate", TASK, {"model": TRAIN, "data": DATA})
    write_json(path, {**json.loads(path.read_text()), "spec": {"of": "another"}})
    Path(DATA, manifest.ABSENT).unlink()
    Path(DATA, "train.bin").write_bytes(b"tokens")  # built here too
    with pytest.raises(UserError, match=f"{TRAIN}/{WEIGHTS}: it stayed on the machine"):
        run_stage(never, path)
    done = []
    run_stage(lambda job: done.append(job.name), path, whole=False)
    assert done == [TASK]


def test_results_that_are_not_what_is_asked_look_older_than_the_request(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack.pack("smoke", tmp_path / "small.tar.gz")
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    fits = request("train", TRAIN, {"mqar": DATA})
    other = request("evaluate", TASK, {"model": TRAIN, "data": DATA})
    write_json(other, {**json.loads(other.read_text()), "code": "another"})
    assert pack.unpack(tmp_path / "small.tar.gz") == (3, 0, 1)
    assert Path(TRAIN, manifest.STAMP).stat().st_mtime >= fits.stat().st_mtime
    assert Path(TASK, manifest.STAMP).stat().st_mtime < other.stat().st_mtime


def test_packing_again_gives_the_same_archive_from_either_machine(
    machine: Path, arrived: Path, tmp_path: Path
) -> None:
    pack.pack("smoke", tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == (tmp_path / "small.tar.gz").read_bytes()


def test_results_that_are_there_stay_and_others_are_not_replaced(
    arrived: Path, tmp_path: Path
) -> None:
    assert pack.unpack(tmp_path / "small.tar.gz") == (0, 3, 0)
    path = Path(TASK, manifest.MANIFEST)
    write_json(path, {**json.loads(path.read_text()), "id": "another"})
    with pytest.raises(UserError, match=f"{TASK}: has another result"):
        pack.unpack(tmp_path / "small.tar.gz")


def repack(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    """Copy an archive with some members changed or added."""
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        names = {entry.name: old.extractfile(entry).read() for entry in old}  # type: ignore[union-attr]
        for name, content in {**names, **change}.items():
            path = target.with_name("member")
            path.write_bytes(content)
            new.add(path, name)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{TASK}/results.json": b"{}"}, f"{TASK}/results.json: found sha256"),
        ({f"{TRAIN}/{WEIGHTS}": b"x"}, f"{TRAIN}/{WEIGHTS}: found sha256"),  # listed as absent
        ({f"{TASK}/extra.txt": b"x"}, f"{TASK}/extra.txt: found sha256 .* no such output"),
        ({"results/../../x": b"x"}, "allowed: paths below results, data"),
        ({"/etc/x": b"x"}, "allowed: paths below"),
        ({"src/x.py": b"x"}, "allowed: paths below"),
        ({f"{TASK}/manifest.json": b"[]"}, f"{TASK} has no readable manifest.json"),
        ({"results/loose.txt": b"x"}, "results has no readable manifest.json"),
    ],
)
def test_an_archive_that_does_not_prove_itself_is_refused_whole(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    pack.pack("smoke", tmp_path / "good.tar.gz")
    bad = repack(tmp_path / "good.tar.gz", tmp_path / "bad.tar.gz", change)
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(UserError, match=message):
        pack.unpack(bad)
    assert list(Path().iterdir()) == []


def test_a_damaged_result_is_not_packed(machine: Path, tmp_path: Path) -> None:
    write_text(Path(TASK, "results.json"), "{}")
    with pytest.raises(UserError, match=f"{TASK}/results.json: found sha256"):
        pack.pack("smoke", tmp_path / "x.tar.gz")
    assert report.command(["pack", "x.tar.gz", "--scale", "none"]) == 2
    write_text(Path("text.tar.gz"), "no archive")
    with pytest.raises(UserError, match="not a whole archive of results"):
        pack.unpack(Path("text.tar.gz"))


def test_an_archive_that_was_cut_off_is_refused(machine: Path) -> None:
    pack.pack("smoke", Path("whole.tar.gz"))
    Path("half.tar.gz").write_bytes(Path("whole.tar.gz").read_bytes()[:-400])
    with pytest.raises(UserError, match=r"half.tar.gz: not a whole archive of results"):
        pack.unpack(Path("half.tar.gz"))


def test_an_archive_grows_job_by_job_and_is_whole_at_any_time(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = tmp_path / "growing.tar.gz"
    pack.Growing(growing).add(Path(TRAIN))  # brings along the data that it was made from
    first = growing.read_bytes()
    pack.Growing(growing).add(Path(TASK))  # as another command would, later
    assert growing.read_bytes().startswith(first)
    pack.Growing(growing).add(Path(TASK))
    pack.pack("smoke", tmp_path / "all.tar.gz")
    assert dict(pack._read(growing)) == dict(pack._read(tmp_path / "all.tar.gz"))
    with tarfile.open(growing) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    early = tmp_path / "early.tar.gz"
    early.write_bytes(first)
    for source, jobs in ((early, 2), (growing, 3)):
        there = tmp_path / str(jobs)
        there.mkdir()
        monkeypatch.chdir(there)
        assert pack.unpack(source) == (jobs, 0, 0)


def test_packing_says_what_is_not_finished_or_not_as_asked(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pack", "x.tar.gz", "--scale", "smoke"]
    assert report.command(arguments) == 0
    assert capsys.readouterr().out == "x.tar.gz: 3 finished jobs, 0.0 MB\n"
    request("evaluate", f"results/{KEY}/niah", {"model": TRAIN})
    path = request("evaluate", TASK, {"model": TRAIN, "data": DATA})
    write_json(path, {**json.loads(path.read_text()), "code": "another"})
    assert report.command(arguments) == 0
    told = capsys.readouterr().out
    assert "1 jobs of smoke are not finished, and not in it" in told
    assert "1 in it are of other options, code or inputs" in told
    Path(DATA, manifest.MANIFEST).unlink()
    assert report.command(arguments) == 2
    assert f"{DATA}/manifest.json: found no file" in capsys.readouterr().err


@pytest.fixture
def published_report(write_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published folder of a made recall study with three models and two seeds."""
    monkeypatch.chdir(tmp_path)
    make("data", DATA, {}, {"train.bin": b"tokens"})
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    folders = {}
    for kind in ("trains", "results"):
        spec[kind] = {k: os.path.relpath(v, tmp_path) for k, v in spec[kind].items()}
        for key, name in spec[kind].items():
            folder = Path(name)
            record = json.loads((folder / manifest.MANIFEST).read_text())
            trained = {"model": {"id": "m", "path": str(folder.parent / "train")}}
            record["inputs"] = record["inputs"] if kind == "trains" else trained
            record["outputs"] = manifest.hash_outputs(folder)
            write_json(folder / manifest.MANIFEST, record)
            write_json(folder / manifest.STAMP, {"id": record["id"]})
            folders[key] = {"path": name, "id": record["id"]}
    write_text(Path("reports/smoke/index.html"), "the page as it was made")
    outputs = manifest.hash_outputs(Path("reports/smoke"))
    record = {"id": "r", "spec": spec, "inputs": folders, "outputs": outputs, "stage": "report"}
    write_json(Path("reports/smoke", manifest.MANIFEST), record)
    return publish.publish("smoke")


def test_a_published_report_is_made_again_from_what_it_keeps(
    published_report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(published_report.rglob(WEIGHTS))
    assert not list(published_report.rglob("*.jsonl"))  # only compressed
    rendered = ["index.html", "claims.md", "tables/recall.md", "figures/learning_curves_recall.png"]
    before = {name: (published_report / name).read_bytes() for name in rendered}
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "reports").mkdir(parents=True)
    (published_report.parent).rename(elsewhere / "reports" / "published")
    monkeypatch.chdir(elsewhere)
    for name in rendered:
        (elsewhere / published_report / name).unlink()
    assert report.command(["published"]) == 0
    assert {name: (elsewhere / published_report / name).read_bytes() for name in rendered} == before
    text = before["index.html"].decode()
    assert "does not exist" not in text
    links = [link for link in re.findall(r'href="([^"]+)"', text) if not link.startswith("#")]
    assert "results/smoke/recall/gdn/seed0/train/manifest.json" in links
    assert all((elsewhere / published_report / link).is_file() for link in links)
    assert ">mqar</text>" in text  # the graph has the data, whose manifest is kept


def test_published_results_can_be_put_in_place(
    published_report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    assert pack.unpack(tmp_path / published_report) == (13, 0, 0)
    lines = (place / "results/smoke/recall/gdn/seed0/recall/samples.jsonl").read_bytes()
    kept = tmp_path / published_report / "results/smoke/recall/gdn/seed0/recall/samples.jsonl.bz2"
    assert bz2.decompress(kept.read_bytes()) == lines


def test_publishing_twice_or_before_the_report_is_refused(published_report: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        publish.publish("smoke")
    with pytest.raises(UserError, match="found no file"):
        publish.publish("small")


def test_a_bundle_has_what_jobs_need_elsewhere(machine: Path, tmp_path: Path) -> None:
    make("data", "data/built/raw", {}, {"text.txt": b"raw"})
    make("data", "data/built/tokens", {"raw": "data/built/raw"}, {"tokens.bin": b"12"})
    out = "results/smoke/language/gdn/seed0/train"
    request("train", out, {"tokens": "data/built/tokens"})
    archive = tmp_path / "jobs.tar.gz"
    assert pack.bundle(Jobs([out]), archive) == (1, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", elsewhere], check=True)
    os.chdir(elsewhere)
    jobs = Jobs([out])
    assert jobs.obstacle(out) is None
    assert Path("data/built/tokens/tokens.bin").read_bytes() == b"12"
    assert not Path("data/built/raw/text.txt").exists()  # its manifest alone went along
    make("train", out, {"tokens": "data/built/tokens"}, {"config.json": b"{}"})
    assert pack.pack("smoke", tmp_path / "back.tar.gz") == 3


def test_a_bundle_refuses_what_would_not_run(machine: Path, tmp_path: Path) -> None:
    jobs = Jobs([TASK])
    with pytest.raises(UserError, match=r"found 'x\.zip'; allowed: names that end in \.tar\.gz"):
        pack.bundle(jobs, tmp_path / "x.zip")
    with pytest.raises(UserError, match=f"{TRAIN} is needed and not asked for"):
        pack.bundle(jobs, tmp_path / "x.tar.gz")
    Path(DATA, "train.bin").write_bytes(b"other")
    with pytest.raises(UserError, match=r"train\.bin: found sha256"):
        pack.bundle(Jobs([TASK, TRAIN]), tmp_path / "x.tar.gz")
