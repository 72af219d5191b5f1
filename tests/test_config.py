"""The configuration: what resolves, and one clear sentence for what does not."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.config import Library
from forgetmenot.config_files import read_yaml
from forgetmenot.errors import UserError
from forgetmenot.requests import write_request, write_requests
from forgetmenot.resolve import Plan, load_plan

CONFIG = Path(__file__).resolve().parents[1] / "workflow" / "config"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the project's own configuration, to spoil."""
    return Path(shutil.copytree(CONFIG, tmp_path / "workflow" / "config"))


def plan(folder: Path, **change: Any) -> Plan:
    values = read_yaml(folder / "config.yaml")
    return load_plan({**values, "scale": "smoke", **change}, folder)


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("scale", Library(CONFIG).names("scales"))
def test_every_scale_resolves(scale: str) -> None:
    found = plan(CONFIG, scale=scale)
    assert found.target == f"reports/{scale}"
    for job in found.jobs.values():
        assert set(job.upstream) <= set(found.jobs)


def test_every_entry_is_used_by_a_scale() -> None:
    library = Library(CONFIG)
    used: dict[str, set[str]] = {kind: set() for kind in ("models", "data", "tasks", "sizes")}
    for scale in library.names("scales"):
        for out, job in plan(CONFIG, scale=scale).jobs.items():
            if job.request["stage"] == "data":
                used["data"].add(out.rpartition("/")[2])
        for study in library.scale(scale, "").studies.values():
            used["models"] |= set(study.variants)
            used["tasks"] |= set(study.tasks)
            used["sizes"].add(study.size)
    assert used == {kind: set(library.names(kind)) for kind in used}


def test_a_hybrid_alternates_its_mixers_and_has_feed_forward_layers_between() -> None:
    request = plan(CONFIG).jobs["results/smoke/recall/gdn_lte/seed0/train"].request
    layers = [layer[0] for layer in request["spec"]["model"]["layers"]]
    assert layers == ["gdn", "swiglu", "lte", "swiglu"]
    # Defaults of the options are written out, so that the request says everything.
    assert request["spec"]["model"]["layers"][0][1]["conv"] == 4


def test_code_roots_are_what_a_variant_uses() -> None:
    jobs = plan(CONFIG).jobs
    roots = jobs["results/smoke/recall/gdn/seed0/train"].request["code_roots"]
    assert roots == [
        "forgetmenot.cli.train",
        "forgetmenot.data.mqar",
        "forgetmenot.mixers.gdn",
        "forgetmenot.mixers.swiglu",
    ]
    prosg = jobs["results/smoke/prompts/rwkv4_prosg/seed0/prosg_retention"].request["code_roots"]
    assert "forgetmenot.prosg.wrapper" in prosg
    assert "forgetmenot.evaluate.prosg" in prosg


def test_a_task_that_requires_a_mixer_is_for_those_models_alone() -> None:
    outs = [out for out in plan(CONFIG).jobs if out.endswith("/kept_map")]
    assert outs == ["results/smoke/language/gdn_lte/seed0/kept_map"]


def test_init_from_waits_for_the_other_run_of_the_same_seed() -> None:
    job = plan(CONFIG, seeds=[3]).jobs["results/smoke/prompts/rwkv4_ft/seed3/train"]
    assert job.request["inputs"]["init"] == "results/smoke/prompts/rwkv4/seed3/train"
    assert "results/smoke/prompts/rwkv4/seed3/train" in job.upstream


def test_papers_and_seeds_choose_what_runs() -> None:
    jobs = plan(CONFIG, papers="prosg", seeds=1).jobs
    trained = {out for out in jobs if out.endswith("/train")}
    assert trained == {
        f"results/smoke/prompts/{variant}/seed1/train"
        for variant in ("rwkv4", "rwkv4_ft", "rwkv4_prosg")
    }
    assert "data/built/mqar" not in jobs


def test_another_scale_leaves_the_store_and_the_data_as_they_are() -> None:
    smoke, paper = plan(CONFIG).jobs, plan(CONFIG, scale="paper").jobs
    shared = [out for out in smoke if out in paper]
    assert "mlflow/store" in shared
    for out in shared:
        assert smoke[out].request == paper[out].request


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("models/gdn_lte.yaml", "lte]", "ltee]", r"models/gdn_lte\.yaml: pattern\.1: found 'ltee'; "
         r"allowed: attn, ffn, gdn, lte, swa \(did you mean 'lte'\?\)"),
        ("models/gdn.yaml", "label:", "lable:", r"models/gdn\.yaml: lable: unknown key; "
         r"allowed: label, .* \(did you mean 'label'\?\)|models/gdn\.yaml: label: this key is mis"),
        ("models/gdn.yaml", "paper: lte", "paper: let", r"gdn\.yaml: paper: found 'let' \(str\); "
         r"allowed: 'lte' or 'prosg'"),
        ("models/rwkv4_ft.yaml", "init_from: rwkv4", "init_from: rwkv5",
         r"models/rwkv4_ft\.yaml: init_from .*: found 'rwkv5'; allowed: rwkv4"),
        ("models/rwkv4_prosg.yaml", "rank: 4", "rank: 0",
         r"rwkv4_prosg\.yaml: prosg: rank: found 0, allowed: 1 or more"),
        ("sizes/recall-2l-d64.yaml", "hidden: 64", "hidden: wide",
         r"sizes/recall-2l-d64\.yaml: hidden: found 'wide' \(str\); allowed: a valid integer"),
        ("sizes/recall-2l-d64.yaml", "window: 8}", "window: 8, wimdow: 9}",
         r"recall-2l-d64\.yaml: blocks\.swa: wimdow: unknown key; allowed: .*window"),
        ("sizes/recall-2l-d64.yaml", "mixer: gdn", "mixer: gnd",
         r"blocks\.gdn\.mixer: found 'gnd'; allowed: attention, gdn"),
        ("sizes/recall-2l-d64.yaml", "kv_heads: 4", "kv_heads: 3",
         r"blocks\.attn: kv_heads: found 3; allowed: divisors of 4"),
        ("data/tokens.yaml", "bpe2k", "bpe3k",
         r"data/tokens\.yaml: needs: found 'bpe3k'; allowed: "),
        ("data/corpus.yaml", "[sotu, wiki]", "[tokens]",
         r"datasets need each other: .*corpus -> tokens -> corpus|.*tokens -> corpus -> tokens"),
        ("data/mqar.yaml", "keys: 32", "keys: many",
         r"data/mqar\.yaml: options: keys: found 'many' \(str\); allowed: a valid integer"),
        ("tasks/recall.yaml", "evaluator: recall", "evaluator: recal",
         r"tasks/recall\.yaml: evaluator: found 'recal'; allowed: .*recall"),
        ("tasks/kept_map.yaml", "requires: lte", "requires: let",
         r"tasks/kept_map\.yaml: requires: found 'let'; allowed: attention, gdn, lte"),
        ("tables/recall.yaml", "header:", "heading:",
         r"tables/recall\.yaml: columns\.0\.header: this key is missing"),
        ("tables/recall.yaml", "task: recall", "task: recal",
         r"tables/recall\.yaml: columns\.0\.task: found 'recal'; allowed: .*recall"),
        ("tables/recall.yaml", "task: recall", "task: recall\nstudy: recal",
         r"tables/recall\.yaml: study: found 'recal'; allowed: language, prompts, recall"),
        ("tables/recall.yaml", "task: recall", "task: recall\nrows: [gnd]",
         r"tables/recall\.yaml: rows\.0: found 'gnd'; allowed: .*gdn"),
        ("claims/lte_beats_gdn_recall.yaml", "worse: gdn", "worse: gnd",
         r"claims/lte_beats_gdn_recall\.yaml: worse: found 'gnd'; allowed: .*gdn"),
        ("scales/smoke.yaml", "gdn_swa, ", "gdn_sw, ",
         r"smoke\.yaml: studies\.recall\.variants\.2: found 'gdn_sw'; allowed: .*gdn_swa"),
        ("scales/smoke.yaml", "size: recall-2l-d64", "size: recall",
         r"smoke\.yaml: studies\.recall\.size: found 'recall'; allowed: .*recall-2l-d64"),
        ("scales/smoke.yaml", "tasks: [recall]", "tasks: [recal]",
         r"smoke\.yaml: studies\.recall\.tasks: found 'recal'; allowed: .*recall"),
        ("scales/smoke.yaml", "steps: ", "stepps: ",
         r"studies\.recall\.train: stepps: unknown key; allowed: steps, "),
        ("scales/smoke.yaml", "steps: ", "steps: -",
         r"studies\.recall\.train: steps: found -\d+, allowed: 1 or more"),
        ("scales/smoke.yaml", "dataset: mqar", "dataset: mkar",
         r"studies\.recall\.data\.0\.dataset: found 'mkar'; allowed: "),
        ("scales/smoke.yaml", "options: {", "options: {pears: 1, ",
         r"studies\.recall\.data\.0\.options: pears: unknown key; allowed: pairs"),
        ("scales/smoke.yaml", "seeds: [0]", "seeds: 0",
         r"smoke\.yaml: seeds: found 0 \(int\); allowed: a valid"),
        ("scales/smoke.yaml", "seeds: [0]", "seeds: [0\n",
         r"smoke\.yaml:\d+: not valid YAML"),
        ("scales/smoke.yaml", "seeds: [0]", "seeds: [0]\nseeds: [1]", r"'seeds' twice"),
        ("scales/smoke.yaml", "learning_rate: ", "learning_rate: .inf #",
         r"smoke\.yaml: found an infinite number or NaN"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_with_file_key_found_and_allowed(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    edit(folder, file, old, new)
    with pytest.raises(UserError, match=message) as error:
        plan(folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": "smok"}, r"config\.yaml: scale: found 'smok'; allowed: paper, small, smoke"),
        ({"papers": ["lte", "x"]}, r"config\.yaml: papers\.1: found 'x' \(str\); allowed: 'lte'"),
        ({"devise": "cpu"}, r"devise: unknown key; allowed: scale, .* \(did you mean 'device'\?\)"),
        ({"tracking": {"url": "x"}}, r"tracking\.url: unknown key; allowed: uri"),
        ({"threads": 0}, r"threads: found 0 \(int\); allowed: greater than or equal to 1"),
    ],
)
def test_a_fault_in_the_main_file_or_on_the_command_line(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(CONFIG, **change)


def test_tables_and_claims_follow_the_papers() -> None:
    spec = plan(CONFIG).jobs["reports/smoke"].request["spec"]
    assert {table["paper"] for table in spec["tables"]} == {"lte", "prosg"}
    assert {table["columns"][0]["header"] for table in spec["tables"] if table["name"] == "recall"}
    prosg = plan(CONFIG, papers=["prosg"]).jobs["reports/smoke"].request["spec"]
    assert {table["paper"] for table in prosg["tables"]} == {"prosg"}
    assert {claim["paper"] for claim in prosg["claims"]} == {"prosg"}
    assert set(prosg["studies"]) == {"prompts"}


def test_a_study_may_change_training_and_tasks_by_name(folder: Path) -> None:
    edit(
        folder, "scales/smoke.yaml", "    tasks: [recall]\n",
        "    tasks: [recall]\n    task_overrides: {recall: {options: {samples: 7}}}\n"
        "    train_overrides: {gdn: {steps: 77}}\n",
    )  # fmt: skip
    specs = {out: job.request["spec"] for out, job in plan(folder).jobs.items()}
    assert specs["results/smoke/recall/gdn/seed0/train"]["train"]["steps"] == 77
    assert specs["results/smoke/recall/gdn_lte/seed0/train"]["train"]["steps"] != 77
    assert specs["results/smoke/recall/gdn/seed0/recall"]["options"]["samples"] == 7


def test_yaml_numbers_are_numbers_and_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 3e-4\nb: 1e5\nc: &c {d: 1}\ne: {<<: *c, f: 2}\n")
    assert read_yaml(path) == {"a": 3e-4, "b": 1e5, "c": {"d": 1}, "e": {"d": 1, "f": 2}}
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match=r"a\.yaml: found bytes that are not UTF-8"):
        read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match=r"a\.yaml: found \[1\] \(list\); allowed: a mapping"):
        read_yaml(path)
    with pytest.raises(UserError, match=r"b\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "b.yaml")


def test_objects_are_never_built_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match=r"a\.yaml:1: not valid YAML"):
        read_yaml(path)


def test_requests_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_requests(plan(CONFIG, papers=["prosg"]))
    files = {path: path.stat().st_mtime_ns for path in Path("work/requests").rglob("*.json")}
    assert len(files) == len(plan(CONFIG, papers=["prosg"]).jobs)
    write_requests(plan(CONFIG, papers=["prosg"]))
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_what_decides_no_result_leaves_the_request_as_old_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    request = {"stage": "data", "name": "a", "spec": {}, "seed": 0, "code": "1", "inputs": {}}
    write_request(path, {**request, "tracking": None})
    before = path.stat()
    write_request(path, {**request, "tracking": {"uri": "x"}})
    assert '"uri": "x"' in path.read_text()
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    write_request(path, {**request, "seed": 1})
    assert path.stat().st_mtime_ns > before.st_mtime_ns


def test_nothing_is_written_while_another_run_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("x")
    write_requests(plan(CONFIG, papers=["prosg"]))
    assert not Path("work").exists()
    lock.unlink()
    write_requests(plan(CONFIG, papers=["prosg"]))
    assert Path("work/requests/reports/smoke.json").is_file()
