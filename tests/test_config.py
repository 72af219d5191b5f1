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
MICRO = Path(__file__).resolve().parent / "workflow" / "micro"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the project's configuration with the tests' micro scale, to spoil."""
    copy = tmp_path / "workflow" / "config"
    shutil.copytree(CONFIG, copy)
    shutil.copytree(MICRO, copy, dirs_exist_ok=True)
    return copy


def plan(folder: Path, **change: Any) -> Plan:
    values = read_yaml(folder / "config.yaml")
    return load_plan({**values, "scale": "micro", **change}, folder)


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


def test_a_hybrid_alternates_its_mixers_and_has_feed_forward_layers_between(folder: Path) -> None:
    request = plan(folder).jobs["results/micro/recall/gdn_lte/seed0/train"].request
    layers = [layer[0] for layer in request["spec"]["model"]["layers"]]
    assert layers == ["gdn", "swiglu", "lte", "swiglu"]
    # Defaults of the options are written out, so that the request says everything.
    assert request["spec"]["model"]["layers"][0][1]["conv"] == 4


def test_code_roots_are_what_a_variant_uses(folder: Path) -> None:
    jobs = plan(folder).jobs
    roots = jobs["results/micro/recall/gdn/seed0/train"].request["code_roots"]
    assert roots == [
        "forgetmenot.cli.train",
        "forgetmenot.data.mqar",
        "forgetmenot.mixers.gdn",
        "forgetmenot.mixers.swiglu",
    ]
    run = "results/micro/prompts/rwkv4_prosg/seed0"
    prosg = jobs[f"{run}/micro-retention"].request["code_roots"]
    assert {"forgetmenot.prosg.wrapper", "forgetmenot.evaluate.prosg"} <= set(prosg)


def test_a_task_that_requires_a_mixer_is_for_those_models_alone(folder: Path) -> None:
    edit(folder, "tasks/micro-recall.yaml", "evaluator:", "requires: lte\nevaluator:")
    outs = [out for out in plan(folder).jobs if out.endswith("/micro-recall")]
    assert outs == ["results/micro/recall/gdn_lte/seed0/micro-recall"]


def test_init_from_waits_for_the_other_run_of_the_same_seed(folder: Path) -> None:
    job = plan(folder, seeds=[3]).jobs["results/micro/prompts/rwkv4_prosg/seed3/train"]
    assert job.request["inputs"]["init"] == "results/micro/prompts/rwkv4/seed3/train"
    assert "results/micro/prompts/rwkv4/seed3/train" in job.upstream


def test_variants_and_tasks_may_have_fewer_seeds(folder: Path) -> None:
    edit(
        folder, "scales/micro.yaml", "    tasks: [micro-recall]\n",
        "    tasks: [micro-recall]\n"
        "    seeds: [0, 1]\n"
        "    variant_seeds: {gdn: [1]}\n"
        "    task_overrides: {micro-recall: {seeds: [0]}}\n",
    )  # fmt: skip
    start = "results/micro/recall/"
    assert {out.removeprefix(start) for out in plan(folder).jobs if out.startswith(start)} == {
        "gdn/seed1/train", "gdn_lte/seed0/train", "gdn_lte/seed1/train",
        "gdn_lte/seed0/micro-recall",
    }  # fmt: skip
    # the main file's choice comes first
    chosen = plan(folder, seeds=[5]).jobs
    assert {"results/micro/recall/gdn/seed5/micro-recall"} <= set(chosen)


def test_an_arm_has_no_seed_that_its_base_lacks(folder: Path) -> None:
    edit(
        folder, "scales/micro.yaml", "    paper: prosg\n",
        "    paper: prosg\n    seeds: [0, 1]\n    variant_seeds: {rwkv4: [0]}\n",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"variant_seeds: found seed 1 of rwkv4_prosg; allowed: se"):
        plan(folder)


def test_papers_and_seeds_choose_what_runs(folder: Path) -> None:
    jobs = plan(folder, papers="prosg", seeds=1).jobs
    trained = {out for out in jobs if out.endswith("/train")}
    assert trained == {
        f"results/micro/prompts/{variant}/seed1/train" for variant in ("rwkv4", "rwkv4_prosg")
    }
    assert "data/built/micro-mqar" not in jobs


def test_studies_choose_what_runs_and_which_tables_there_are() -> None:
    jobs = plan(CONFIG, scale="small", studies="recall", seeds=[1]).jobs
    runs = {out.split("/")[2] for out in jobs if out.startswith("results/")}
    assert runs == {"recall"}
    spec = jobs["reports/small"].request["spec"]
    assert list(spec["studies"]) == ["recall"]
    tables = {table["name"] for table in spec["tables"]}
    assert {"cost", "recall", "training_lte"} <= tables
    assert not tables & {"niah", "language", "prosg_main"}
    # what is claimed of other studies stays in sight, as not run
    assert "l1_needles_over_gdn" in {claim["id"] for claim in spec["claims"]}
    with pytest.raises(UserError, match=r"studies: found 'recal'; allowed: language, .*recall"):
        plan(CONFIG, scale="small", studies=["recal"])


def test_another_scale_leaves_the_store_and_the_data_as_they_are() -> None:
    smoke, paper = plan(CONFIG, scale="smoke").jobs, plan(CONFIG, scale="paper").jobs
    shared = [out for out in smoke if out in paper]
    assert "mlflow/store" in shared
    for out in shared:
        assert smoke[out].request == paper[out].request


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("models/gdn_lte.yaml", "lte]", "ltee]", r"models/gdn_lte\.yaml: pattern\.1: found 'ltee'; "
         r"allowed: ffn, gdn, lte, rwkv4_channel, rwkv4_time \(did you mean 'lte'\?\)"),
        ("models/gdn.yaml", "label:", "lable:", r"models/gdn\.yaml: lable: unknown key; "
         r"allowed: label, .* \(did you mean 'label'\?\)|models/gdn\.yaml: label: this key is mis"),
        ("models/gdn.yaml", "paper: lte", "paper: let", r"gdn\.yaml: paper: found 'let' \(str\); "
         r"allowed: 'lte' or 'prosg'"),
        ("models/rwkv4_prosg.yaml", "init_from: rwkv4", "init_from: rwkv5",
         r"models/rwkv4_prosg\.yaml: init_from .*: found 'rwkv5'; allowed: rwkv4"),
        ("models/rwkv4_prosg.yaml", "prosg:\n", "prosg:\n  width: 0\n",
         r"rwkv4_prosg\.yaml: prosg: width: found 0, allowed: 1 or more"),
        ("sizes/micro.yaml", "hidden: 16", "hidden: wide",
         r"sizes/micro\.yaml: hidden: found 'wide' \(str\); allowed: a valid integer"),
        ("sizes/micro.yaml", "window: 8", "window: 8, wimdow: 9",
         r"micro\.yaml: blocks\.lte: wimdow: unknown key; allowed: .*window"),
        ("sizes/micro.yaml", "mixer: gdn", "mixer: gnd",
         r"blocks\.gdn\.mixer: found 'gnd'; allowed: attention, eviction, gdn"),
        ("sizes/micro.yaml", "kv_heads: 2", "kv_heads: 3",
         r"blocks\.lte: kv_heads: found 3; allowed: divisors of 2"),
        ("data/micro-tokens.yaml", "micro-bpe", "micro-bp",
         r"data/micro-tokens\.yaml: needs: found 'micro-bp'; allowed: "),
        ("data/micro-bpe.yaml", "[micro-corpus]", "[micro-tokens]",
         r"datasets need each other: .*micro-bpe -> micro-tokens"),
        ("data/micro-mqar.yaml", "keys: 8", "keys: many",
         r"data/micro-mqar\.yaml: options: keys: found 'many' \(str\); allowed: a valid integer"),
        ("tasks/micro-recall.yaml", "evaluator: recall", "evaluator: recal",
         r"tasks/micro-recall\.yaml: evaluator: found 'recal'; allowed: .*recall"),
        ("tasks/micro-recall.yaml", "evaluator:", "requires: let\nevaluator:",
         r"tasks/micro-recall\.yaml: requires: found 'let'; allowed: attention, .*gdn, lte"),
        ("tables/micro.yaml", "header:", "heading:",
         r"tables/micro\.yaml: columns\.0\.header: this key is missing"),
        ("tables/micro.yaml", "task: micro-recall", "task: recall",
         r"tables/micro\.yaml: columns\.0\.task: found 'recall'; allowed: .*micro-recall"),
        ("tables/micro.yaml", "study: recall", "study: recal",
         r"tables/micro\.yaml: study: found 'recal'; allowed: language, prompts, recall"),
        ("tables/micro.yaml", "study: recall", "study: recall\nrows: [gnd]",
         r"tables/micro\.yaml: rows\.0: found 'gnd'; allowed: gdn, gdn_lte"),
        ("scales/micro.yaml", "[gdn, gdn_lte]", "[gdn, gdn_let]",
         r"micro\.yaml: studies\.recall\.variants\.1: found 'gdn_let'; allowed: .*gdn_lte"),
        ("scales/micro.yaml", "size: micro", "size: micr",
         r"micro\.yaml: studies\.recall\.size: found 'micr'; allowed: .*micro"),
        ("scales/micro.yaml", "tasks: [micro-recall]", "tasks: [recal]",
         r"micro\.yaml: studies\.recall\.tasks: found 'recal'; allowed: .*recall"),
        ("scales/micro.yaml", "{steps: 2", "{stepps: 2",
         r"studies\.recall\.train: stepps: unknown key; allowed: steps, "),
        ("scales/micro.yaml", "{steps: 2", "{steps: -2",
         r"studies\.recall\.train: steps: found -2, allowed: 1 or more"),
        ("scales/micro.yaml", "{steps: 2", "{steps: 2, learning_rate: .inf",
         r"micro\.yaml: found an infinite number or NaN"),
        ("scales/micro.yaml", "dataset: micro-mqar", "dataset: micro-mkar",
         r"studies\.recall\.data\.0\.dataset: found 'micro-mkar'; allowed: "),
        ("scales/micro.yaml", "{pairs: [2]}", "{pairs: [2], pears: 1}",
         r"studies\.recall\.data\.0\.options: pears: unknown key; allowed: pairs"),
        ("scales/micro.yaml", "seeds: [0]", "seeds: 0",
         r"micro\.yaml: seeds: found 0 \(int\); allowed: a valid"),
        ("scales/micro.yaml", "seeds: [0]", "seeds: [0\n", r"micro\.yaml:\d+: not valid YAML"),
        ("scales/micro.yaml", "seeds: [0]", "seeds: [0]\nseeds: [1]", r"'seeds' twice"),
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
        (
            {"scale": "smok"},
            r"config\.yaml: scale: found 'smok'; allowed: micro, paper, released, small, smoke",
        ),
        ({"papers": ["lte", "x"]}, r"config\.yaml: papers\.1: found 'x' \(str\); allowed: 'lte'"),
        ({"devise": "cpu"}, r"devise: unknown key; allowed: scale, .* \(did you mean 'device'\?\)"),
        ({"tracking": {"url": "x"}}, r"tracking\.url: unknown key; allowed: uri"),
        ({"threads": 0}, r"threads: found 0 \(int\); allowed: greater than or equal to 1"),
    ],
)
def test_a_fault_in_the_main_file_or_on_the_command_line(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(folder, **change)


def test_tables_and_claims_follow_the_papers() -> None:
    spec = plan(CONFIG, scale="smoke").jobs["reports/smoke"].request["spec"]
    assert {entry["paper"] for entry in spec["tables"] + spec["claims"]} == {"lte", "prosg"}
    prosg = plan(CONFIG, scale="smoke", papers=["prosg"]).jobs["reports/smoke"].request["spec"]
    assert {entry["paper"] for entry in prosg["tables"] + prosg["claims"]} == {"prosg"}
    assert {study["paper"] for study in prosg["studies"].values()} == {"prosg"}


def test_a_claim_may_name_what_the_scale_does_not_train_but_no_unknown_variant(
    folder: Path,
) -> None:
    claim = (
        "{paper: lte, text: t, source: s, study: recall, task: micro-recall, metric: accuracy, "
        "better: gdn_lte, worse: [gdn_swa]}"
    )
    file = folder / "claims" / "micro.yaml"
    file.write_text(claim)
    edit(folder, "scales/micro.yaml", "tables:", "claims: [micro]\ntables:")
    spec = plan(folder).jobs["reports/micro"].request["spec"]
    (planned,) = spec["claims"]
    assert planned["worse"] == ["gdn_swa"]
    assert spec["claim_labels"]["gdn_swa"] == "GDN+SWA"
    file.write_text(claim.replace("gdn_swa", "gdn_sva"))
    with pytest.raises(UserError, match=r"claims/micro\.yaml: variants\.1: found 'gdn_sva'; allow"):
        plan(folder)


def test_a_study_may_change_training_and_tasks_by_name(folder: Path) -> None:
    edit(
        folder, "scales/micro.yaml", "    tasks: [micro-recall]\n",
        "    tasks: [micro-recall]\n"
        "    task_overrides: {micro-recall: {options: {samples: 7}}}\n"
        "    train_overrides: {gdn: {steps: 77}}\n",
    )  # fmt: skip
    specs = {out: job.request["spec"] for out, job in plan(folder).jobs.items()}
    assert specs["results/micro/recall/gdn/seed0/train"]["train"]["steps"] == 77
    assert specs["results/micro/recall/gdn_lte/seed0/train"]["train"]["steps"] == 2
    assert specs["results/micro/recall/gdn/seed0/micro-recall"]["options"]["samples"] == 7


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


def test_requests_are_written_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_requests(plan(folder, papers=["prosg"]))
    files = {path: path.stat().st_mtime_ns for path in Path("work/requests").rglob("*.json")}
    assert len(files) == len(plan(folder, papers=["prosg"]).jobs)
    write_requests(plan(folder, papers=["prosg"]))
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
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("x")
    write_requests(plan(folder, papers=["prosg"]))
    assert not Path("work").exists()
    lock.unlink()
    write_requests(plan(folder, papers=["prosg"]))
    assert Path("work/requests/reports/micro.json").is_file()
