"""From a checked configuration to jobs: the request of every stage, and what it depends on."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from forgetmenot import plugins, resolve_weights
from forgetmenot.code_hash import CodeHasher
from forgetmenot.config import Dataset, Library, Main, Paper, Scale, Stream, Study, Task
from forgetmenot.config_files import check, one_of
from forgetmenot.errors import UserError
from forgetmenot.files import sha256_file
from forgetmenot.model_spec import as_values, model_spec, plugin_options
from forgetmenot.report.spec import Claim, Table, listed
from forgetmenot.resolve_weights import Weights, model_roots

STORE = "mlflow/store"


@dataclass(frozen=True)
class Job:
    """One request, and the output folders that must exist before it can run."""

    request: dict[str, Any]
    upstream: tuple[str, ...]


class Plan:
    """All jobs of the chosen scale and papers.

    `jobs` maps an output folder to its job and `target` is the report's folder. Raises UserError
    for any fault in the configuration.
    """

    def __init__(self, main: Main, library: Library, where: str) -> None:
        self.main, self.library = main, library
        self.hasher = CodeHasher()
        self.jobs: dict[str, Job] = {}
        self.scale_file = str(library.path("scales", main.scale))
        self.scale: Scale = library.scale(main.scale, f"{where}: scale")
        self.studies = {
            name: study for name, study in self.scale.studies.items() if study.paper in main.papers
        }
        if not self.studies:
            found = sorted({study.paper for study in self.scale.studies.values()})
            raise UserError(
                f"{where}: papers: found {main.papers}; allowed: {', '.join(found)} "
                f"(what {self.scale_file} has)"
            )
        if main.studies is not None:
            chosen = [one_of(name, self.studies, f"{where}: studies") for name in main.studies]
            self.studies = {n: study for n, study in self.studies.items() if n in chosen}
        self._add_store()
        for name, study in self.studies.items():
            self._add_study(name, study, f"{self.scale_file}: studies.{name}")
        self.target = self._add_report()

    def request_file(self, out: str) -> str:
        """Return the request file of the job that makes `out`."""
        return f"work/requests/{out}.json"

    def stamps(self, out: str) -> list[str]:
        """Return the stamps that the job making `out` waits for. Raises UserError if none does."""
        return [f"{folder}/stamp.json" for folder in self._job(out).upstream]

    def stage(self, out: str) -> str:
        """Return the stage of the job that makes `out`. Raises UserError if none does."""
        return str(self._job(out).request["stage"])

    def _job(self, out: str) -> Job:
        if out not in self.jobs:
            raise UserError(
                f"{out}: not part of scale {self.main.scale}, papers {self.main.papers}"
            )
        return self.jobs[out]

    @property
    def gpus(self) -> int:
        """GPUs of a training or evaluation job; found out without torch, which loads slowly."""
        has_gpu = shutil.which("nvidia-smi") is not None
        return int(self.main.device == "cuda" or (self.main.device == "auto" and has_gpu))

    def _add(
        self,
        stage: str,
        out: str,
        name: str,
        roots: Iterable[str],
        spec: dict[str, Any],
        **extra: Any,
    ) -> str:
        code_roots = sorted({f"forgetmenot.cli.{stage}", *roots})
        inputs = extra.pop("inputs", {})
        request = {
            "stage": stage,
            "name": name,
            "out": out,
            "work": f"work/runs/{name}",
            "inputs": inputs,
            "spec": spec,
            "seed": 0,
            "code": self.hasher.hash(*code_roots),
            "code_roots": code_roots,
            "tracking": None,
            "tags": {},
            **extra,
        }
        self.jobs[out] = Job(request, tuple(dict.fromkeys(inputs.values())))
        return out

    def _tracking(self, experiment: str) -> dict[str, Any]:
        return {"uri": self.main.tracking.uri, "experiment": f"forgetmenot/{experiment}"}

    def _add_store(self) -> None:
        # Every scale's experiments, so that choosing another scale leaves this job done.
        scales = self.library.names("scales")
        experiments = [
            "data",
            *(f"{scale}/{part}" for scale in scales for part in (*get_args(Paper), "report")),
        ]
        spec = {
            "uri": self.main.tracking.uri,
            "experiments": [f"forgetmenot/{name}" for name in experiments],
        }
        self._add("tracking", STORE, "tracking", [], spec)

    def _add_dataset(self, name: str, where: str, above: tuple[str, ...] = ()) -> str:
        if name in above:
            raise UserError(f"{where}: datasets need each other: {' -> '.join([*above, name])}")
        out = f"data/built/{name}"
        if out in self.jobs:
            return out
        entry: Dataset = self.library.dataset(name, where)
        file = str(self.library.path("data", name))
        plugins.require("data", entry.builder, f"{file}: builder")
        options = plugin_options("data", entry.builder, entry.options, f"{file}: options")
        inputs = {
            need: self._add_dataset(need, f"{file}: needs", (*above, name)) for need in entry.needs
        }
        return self._add(
            "data",
            out,
            f"data/{name}",
            [f"forgetmenot.data.{entry.builder}"],
            {"builder": entry.builder, "options": options},
            inputs=inputs,
            tracking=self._tracking("data"),
            tags={"dataset": name},
        )

    def _add_study(self, name: str, study: Study, where: str) -> None:
        size = self.library.size(study.size, f"{where}.size")
        for variant in study.released:
            one_of(variant, study.variants, f"{where}.released")
        trained = [variant for variant in study.variants if variant not in study.released]
        for variant in study.train_overrides:
            one_of(variant, trained, f"{where}.train_overrides")
        for variant in study.variant_seeds:
            one_of(variant, study.variants, f"{where}.variant_seeds")
        streams = [self._stream(part, f"{where}.data.{n}") for n, part in enumerate(study.data)]
        for task in study.task_overrides:
            one_of(task, study.tasks, f"{where}.task_overrides")
        tasks = {task: self._task(task, study, where) for task in study.tasks}
        for n, variant in enumerate(study.variants):
            model = self.library.model(variant, f"{where}.variants.{n}")
            file = str(self.library.path("models", variant))
            if model.init_from is not None:
                one_of(
                    model.init_from, study.variants[:n], f"{file}: init_from (earlier in {where})"
                )
            spec = model_spec(model, size, file, str(self.library.path("sizes", study.size)))
            if variant in study.released:
                source = study.released[variant]
                place = f"{where}.released.{variant}.tokenizer"
                tokenizer = source.tokenizer and self._add_dataset(source.tokenizer, place)
                weights = resolve_weights.fetched(source, spec, tokenizer)
            else:
                weights = resolve_weights.trained(
                    study, variant, model, spec, streams, self.main.device, where
                )
            for seed in self.seeds(study, variant):
                base = f"results/{self.main.scale}/{name}/{model.init_from}/seed{seed}/train"
                if model.init_from is not None and base not in self.jobs:
                    raise UserError(
                        f"{where}.variant_seeds: found seed {seed} of {variant}; allowed: seeds of "
                        f"{model.init_from}, from which it starts"
                    )
                self._add_run(name, study, variant, seed, weights, tasks)

    def _add_run(
        self,
        study_name: str,
        study: Study,
        variant: str,
        seed: int,
        weights: Weights,
        tasks: dict[str, tuple[Task, dict[str, Any]]],
    ) -> None:
        study_path = f"{self.main.scale}/{study_name}"
        run = f"{study_path}/{variant}/seed{seed}"
        common: dict[str, Any] = {
            "seed": seed,
            "tracking": self._tracking(f"{self.main.scale}/{study.paper}"),
            "tags": {
                "scale": self.main.scale,
                "paper": study.paper,
                "study": study_name,
                "variant": variant,
                "seed": seed,
            },
        }
        stage, spec, inputs, roots, init_from = weights
        if init_from is not None:
            inputs = {**inputs, "init": f"results/{study_path}/{init_from}/seed{seed}/train"}
        made = self._add(stage, f"results/{run}/train", run, roots, spec, inputs=inputs, **common)
        used = model_roots(spec["model"])
        mixers = {layer[0] for layer in spec["model"]["layers"]}
        for task_name, (task, options) in tasks.items():
            if task.requires is not None and task.requires not in mixers:
                continue
            override = study.task_overrides.get(task_name)
            few = None if override is None or self.main.seeds else override.seeds
            if few is not None and seed not in few:
                continue
            data = f"data/built/{task.dataset}"
            builder = self.jobs[data].request["spec"]["builder"]
            roots = used | {f"forgetmenot.evaluate.{task.evaluator}", f"forgetmenot.data.{builder}"}
            self._add(
                "evaluate",
                f"results/{run}/{task_name}",
                f"{run}/{task_name}",
                roots,
                {
                    "evaluator": task.evaluator,
                    "task": task_name,
                    "options": options,
                    "device": self.main.device,
                },
                inputs={"model": made, "data": data},
                **common | {"tags": common["tags"] | {"task": task_name}},
            )

    def _stream(self, part: Stream, where: str) -> dict[str, Any]:
        self._add_dataset(part.dataset, f"{where}.dataset")
        builder = self.jobs[f"data/built/{part.dataset}"].request["spec"]["builder"]
        options = plugin_options("data", builder, part.options, f"{where}.options", "StreamOptions")
        return {
            "dataset": part.dataset,
            "builder": builder,
            "weight": part.weight,
            "options": options,
        }

    def _task(self, name: str, study: Study, where: str) -> tuple[Task, dict[str, Any]]:
        task = self.library.task(name, f"{where}.tasks")
        place = str(self.library.path("tasks", name))
        plugins.require("evaluate", task.evaluator, f"{place}: evaluator")
        if task.requires is not None:
            plugins.require("mixers", task.requires, f"{place}: requires")
        if name in study.task_overrides:
            override = study.task_overrides[name]
            place += f" with {where}.task_overrides.{name}"
            changed = {
                "dataset": override.dataset or task.dataset,
                "options": task.options | override.options,
            }
            task = task.model_copy(update=changed)
        self._add_dataset(task.dataset, f"{place}: dataset")
        return task, plugin_options("evaluate", task.evaluator, task.options, f"{place}: options")

    def seeds(self, study: Study, variant: str | None = None) -> list[int]:
        """Return the training seeds of a study: config.yaml's, else its own, else the scale's.

        A variant may have fewer, unless config.yaml chooses.
        """
        if variant in study.variant_seeds and not self.main.seeds:
            return study.variant_seeds[variant]
        return self.main.seeds or study.seeds or self.scale.seeds

    def _add_report(self) -> str:
        inputs: dict[str, str] = {}
        trains: dict[str, str] = {}
        results: dict[str, str] = {}
        for out, job in self.jobs.items():
            if job.request["stage"] not in ("train", "fetch", "evaluate"):
                continue
            key = job.request["name"].removeprefix(f"{self.main.scale}/")
            inputs[key] = out
            (results if job.request["stage"] == "evaluate" else trains)[key] = out
        # The report builds the models once more, without weights, to say what they cost.
        models = [self.jobs[out].request["spec"]["model"] for out in trains.values()]
        roots = set().union(*(model_roots(model) for model in models))
        claims = self._entries("claims", self.scale.claims, Claim, "id")
        named = {name for claim in claims for name in Claim(**claim).variants}
        published = sorted((self.library.folder.parents[1] / "reports/papers").glob("*.yaml"))
        spec = {
            "scale": self.main.scale,
            "description": self.scale.description,
            "papers": self.main.papers,
            "deviations": self.scale.deviations,
            "studies": {name: self._study_spec(study) for name, study in self.studies.items()},
            "tables": self._entries("tables", self.scale.tables, Table, "name"),
            "claims": claims,
            # A claim may name a variant that this scale does not run.
            "claim_labels": {
                name: self.library.model(name, self.scale_file).label for name in sorted(named)
            },
            "trains": trains,
            "results": results,
            # The report reads these files itself; their hashes make it notice a change.
            "published": {path.stem: sha256_file(path) for path in published},
        }
        name = f"report/{self.main.scale}"
        return self._add(
            "report",
            f"reports/{self.main.scale}",
            name,
            roots,
            spec,
            inputs=inputs,
            tracking=self._tracking(f"{self.main.scale}/report"),
            tags={"scale": self.main.scale},
        )

    def _study_spec(self, study: Study) -> dict[str, Any]:
        variants = []
        for name in study.variants:
            model = self.library.model(name, self.scale_file)
            variants.append({"name": name, "label": model.label, "description": model.description})
        return {**study.model_dump(), "variants": variants, "seeds": self.seeds(study)}

    def _entries(
        self, kind: str, chosen: list[str], schema: type[Any], key: str
    ) -> list[dict[str, Any]]:
        entries = []
        for name in chosen:
            values = self.library.read(kind, name, f"{self.scale_file}: {kind}")
            file = str(self.library.path(kind, name))
            entry = check(schema, {**values, key: name}, file)
            self._check_references(entry, file)
            if entry.paper in self.main.papers and (schema is not Table or self._has_rows(entry)):
                entries.append(as_values(entry))
        return entries

    def _has_rows(self, table: Table) -> bool:
        """Whether a chosen study has what the table shows; claims say themselves what is absent."""
        studies = [study for name, study in self.studies.items() if (table.study or name) == name]
        tasks = {"train"}.union(*(study.tasks for study in studies)) if studies else set()
        return not tasks.isdisjoint(listed(table.task or "train"))

    def _check_references(self, entry: Table | Claim, file: str) -> None:
        """Raise UserError for a study, variant or task of a table or claim that is not there."""
        studies = self.scale.studies
        if entry.study:
            one_of(entry.study, studies, f"{file}: study")
            studies = {entry.study: studies[entry.study]}
        tasks = {"train"}.union(*(study.tasks for study in studies.values()))
        variants = {variant for study in studies.values() for variant in study.variants}
        if isinstance(entry, Claim):
            # It may name what this scale does not run: the report says so, by name.
            variants |= set(self.library.names("models"))
            tasks |= set(self.library.names("tasks"))
            named = {f"variants.{n}": variant for n, variant in enumerate(entry.variants)}
        else:
            named = {f"rows.{n}": variant for n, variant in enumerate(entry.rows or [])}
            for n, column in enumerate(entry.columns):
                one_of(column.task or entry.task, tasks, f"{file}: columns.{n}.task")
        for task in listed(entry.task or "train"):
            one_of(task, tasks, f"{file}: task")
        for key, variant in named.items():
            if variant is not None:
                one_of(variant, variants, f"{file}: {key}")


def load_plan(values: dict[str, Any], folder: Path) -> Plan:
    """Return the plan for config.yaml's values and the configuration folder beside it."""
    where = str(folder / "config.yaml")
    return Plan(check(Main, values, where), Library(folder), where)
