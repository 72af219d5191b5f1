"""The configuration's schema: every key once, with what it means.

Files live in `workflow/config/<kind>/<name>.yaml`; a name in one file refers to the file of that
name in another folder. Options of mixers, builders, evaluators and training are declared by the
code that uses them (class `Options`) and checked against it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from forgetmenot.config_files import check, one_of, read_yaml

Paper = Literal["lte", "prosg"]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_list(value: Any) -> Any:
    # `--config papers=prosg` and `--config seeds=0` are one value, meaning a list of one.
    return value if value is None or isinstance(value, list) else [value]


class Tracking(_Schema):
    """Where runs are shown."""

    uri: str | None = Field(None, description="MLflow server or store; null = mlflow/ here")


class Main(_Schema):
    """config.yaml: what to run."""

    scale: str = Field(description="file in scales/")
    papers: Annotated[list[Paper], BeforeValidator(_as_list)] = Field(description="which papers")
    studies: Annotated[list[str] | None, BeforeValidator(_as_list)] = Field(
        None, min_length=1, description="which of the scale's studies; null = all of those papers"
    )
    seeds: Annotated[list[int] | None, BeforeValidator(_as_list)] = Field(
        None, description="training seeds; null = the scale's"
    )
    tracking: Tracking = Tracking(uri=None)
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU if any")
    threads: int = Field(1, ge=1, description="CPU threads of one job")


class Stream(_Schema):
    """One part of a training mixture."""

    dataset: str = Field(description="file in data/")
    weight: float = Field(1.0, gt=0, description="share of the batches, relative")
    options: dict[str, Any] = Field({}, description="StreamOptions of the dataset's builder")


class TaskOverride(_Schema):
    """What a study changes in a task, so that a task keeps its name at every scale."""

    dataset: str | None = Field(None, description="file in data/; null = the task's own")
    options: dict[str, Any] = Field({}, description="evaluator Options that differ")
    seeds: list[int] | None = Field(None, description="of the study's; null = all of them")


class Released(_Schema):
    """Where the weights of a variant come from that others trained and released."""

    repository: str = Field(description="owner/name on the hub")
    revision: str | None = Field(
        None,
        pattern="^[0-9a-f]{40}$",
        description="its commit, 40 hexadecimal digits: a branch would move; null = not known yet",
    )
    mirror: str | None = Field(None, description="local folder to read instead of the hub")
    tokenizer: str | None = Field(
        None, description="file in data/ that must have its vocabulary; null = not compared"
    )


class Study(_Schema):
    """Variants trained, or fetched, and scored under equal conditions."""

    paper: Paper
    title: str = Field(description="heading in the report")
    size: str = Field(description="file in sizes/")
    variants: list[str] = Field(min_length=1, description="files in models/")
    tasks: list[str] = Field(description="files in tasks/")
    seeds: list[int] | None = Field(None, description="null = the scale's")
    variant_seeds: dict[str, list[int]] = Field(
        {}, description="{variant: its seeds among the study's, where they are fewer}"
    )
    deviations: list[str] = Field([], description="differences from the paper, for the report")
    released: dict[str, Released] = Field(
        {}, description="{variant: its weights, which are fetched and not trained}"
    )
    train: dict[str, Any] = Field({}, description="training Options of the trained variants")
    train_overrides: dict[str, dict[str, Any]] = Field(
        {}, description="{variant: training Options that differ}"
    )
    data: list[Stream] = Field([], description="the training mixture of the trained variants")
    task_overrides: dict[str, TaskOverride] = Field(
        {}, description="{task: what differs from its file}"
    )

    @model_validator(mode="after")
    def _trained_on_something(self) -> "Study":
        trained = [variant for variant in self.variants if variant not in self.released]
        if trained and not self.data:
            raise ValueError(f"data: found nothing to train {', '.join(trained)} on")
        return self


class Scale(_Schema):
    """scales/<name>.yaml: how big everything is."""

    description: str = Field(description="one sentence for the report")
    seeds: list[int] = Field(min_length=1, description="training seeds")
    deviations: list[str] = Field([], description="differences from the papers, for the report")
    tables: list[str] = Field([], description="files in tables/")
    claims: list[str] = Field([], description="files in claims/")
    studies: dict[str, Study] = Field(min_length=1)


class Size(_Schema):
    """sizes/<name>.yaml: shape of the models of a study."""

    hidden: int = Field(gt=0, description="width of the residual stream")
    layers: int = Field(gt=0, description="blocks; each is a token mixer and a feed-forward layer")
    tie_embeddings: bool = Field(True, description="output head shares the embedding")
    init_std: float | None = Field(None, gt=0, description="std of weights; null = 1/sqrt(width)")
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="norm before each layer")
    norm_eps: float = Field(1e-6, gt=0, description="epsilon of the norms")
    blocks: dict[str, dict[str, Any]] = Field(
        description="{block: {mixer: plugin, and the Options of that mixer}}"
    )


class Model(_Schema):
    """models/<name>.yaml: one variant, for every size that has its blocks."""

    label: str = Field(description="name in tables")
    description: str = Field(description="one sentence for the report")
    paper: Paper
    pattern: list[str] = Field(min_length=1, description="token mixers, repeated over the depth")
    ffn: str = Field(description="block of the feed-forward layers")
    overrides: dict[str, dict[str, Any]] = Field(
        {}, description="{block: Options that differ from the size's}"
    )
    residual_init: Literal["none", "rescale"] = Field(
        "none", description="how maps that write to the residual stream start (mixers/base.py)"
    )
    init_from: str | None = Field(None, description="variant of the same study to start from")
    prosg: dict[str, Any] | None = Field(None, description="ProSG Options; null = no generator")
    trainable: Literal["all", "generator", "base"] = Field(
        "all", description="what the optimizer changes"
    )
    train: dict[str, Any] = Field(
        {}, description="training options that make this variant, beside those of its study"
    )


class Dataset(_Schema):
    """data/<name>.yaml: one built dataset."""

    builder: str = Field(description="plugin in src/forgetmenot/data/")
    needs: list[str] = Field([], description="datasets that the builder reads")
    options: dict[str, Any] = Field({}, description="Options of the builder")


class Task(_Schema):
    """tasks/<name>.yaml: one way to score a trained model."""

    evaluator: str = Field(description="plugin in src/forgetmenot/evaluate/")
    dataset: str = Field(description="file in data/")
    options: dict[str, Any] = Field({}, description="Options of the evaluator")
    requires: str | None = Field(None, description="only models with this mixer; null = all")


class Library:
    """The configuration folder: entries by kind and name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, kind: str) -> list[str]:
        """Return the names of all entries of a kind, sorted."""
        return sorted(path.stem for path in (self.folder / kind).glob("*.yaml"))

    def path(self, kind: str, name: str) -> Path:
        """Return the file of an entry, for messages."""
        return self.folder / kind / f"{name}.yaml"

    def read(self, kind: str, name: str, where: str) -> dict[str, Any]:
        """Return an entry's values. Raises UserError, blaming `where`, if there is no such file."""
        one_of(name, self.names(kind), where)
        return read_yaml(self.path(kind, name))

    def scale(self, name: str, where: str) -> Scale:
        """Return a checked scale."""
        return check(Scale, self.read("scales", name, where), str(self.path("scales", name)))

    def size(self, name: str, where: str) -> Size:
        """Return a checked size, its blocks' options still as written."""
        return check(Size, self.read("sizes", name, where), str(self.path("sizes", name)))

    def model(self, name: str, where: str) -> Model:
        """Return a checked model."""
        return check(Model, self.read("models", name, where), str(self.path("models", name)))

    def dataset(self, name: str, where: str) -> Dataset:
        """Return a checked dataset, its options still as written."""
        return check(Dataset, self.read("data", name, where), str(self.path("data", name)))

    def task(self, name: str, where: str) -> Task:
        """Return a checked task, its options still as written."""
        return check(Task, self.read("tasks", name, where), str(self.path("tasks", name)))
