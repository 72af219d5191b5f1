"""Fetch weights that others trained: `python -m forgetmenot.cli.fetch --request <file>`."""

from pathlib import Path
from typing import Any

from forgetmenot.errors import UserError
from forgetmenot.stage import Job, stage


def main(job: Job) -> None:
    """Fetch weights that others trained, check that they are the model meant, save them as ours.

    Spec: `model` (what the configuration says it is, see model.py; its `vocab` is null),
    `repository`, `revision` and `mirror` (config.py, Released). An input `tokenizer` is a folder
    whose vocabulary must be the checkpoint's. Writes `config.json`, `model.safetensors` and
    `source.json` (where from, and the hash of each file read).
    """
    from forgetmenot import model as models
    from forgetmenot import released_files
    from forgetmenot.files import write_json
    from forgetmenot.released import from_reference

    scale, study, variant, _ = job.name.split("/")
    where = f"workflow/config/scales/{scale}.yaml: studies.{study}.released.{variant}"
    source = {key: job.spec[key] for key in ("repository", "revision", "mirror")}
    folder = released_files.obtain(**source, where=where)
    if "tokenizer" in job.inputs:
        check_tokenizer(folder, job.inputs["tokenizer"])
    config, weights = released_files.read_checkpoint(folder)
    model = from_reference(config, weights, str(folder / "config.json"))
    faults = differences(job.spec["model"], model.spec)
    if faults:
        raise UserError(f"{folder / 'config.json'}: another model than {variant}: {faults}")
    models.save(model, job.out)
    if source["mirror"] is not None:
        # That its files are of this revision cannot be known from them.
        source |= {"mirror": True, "revision": None}
    write_json(job.out / "source.json", source | {"files": released_files.hashes(folder)})


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """What tells two model specs apart, in what both say about the function; empty if nothing."""
    lines = [
        f"{key} is {found[key]}, expected {expected[key]}"
        for key in ("hidden", "norm", "norm_eps", "tie_embeddings")
        if found[key] != expected[key]
    ]
    names = [[layer[0] for layer in spec["layers"]] for spec in (found, expected)]
    if names[0] != names[1]:
        return "; ".join([*lines, f"layers are {names[0]}, expected {names[1]}"])
    for (name, options), (_, wanted) in zip(found["layers"], expected["layers"], strict=True):
        for key, value in options.items():
            if value != wanted.get(key):
                lines.append(f"{name}.{key} is {value}, expected {wanted.get(key)}")
    return "; ".join(dict.fromkeys(lines))


def check_tokenizer(folder: Path, ours: Path) -> None:
    """Raise UserError unless the checkpoint's vocabulary is that of the tokenizer folder `ours`."""
    from forgetmenot.data.tokenizer_folder import load_tokenizer

    theirs, wanted = (load_tokenizer(path).get_vocab() for path in (folder, ours))
    odd = sorted(token for token in {*theirs, *wanted} if theirs.get(token) != wanted.get(token))
    if odd:
        raise UserError(
            f"{folder / 'tokenizer.json'}: another vocabulary than {ours}: {len(odd)} tokens have "
            f"other ids, such as {odd[0]!r}"
        )


if __name__ == "__main__":
    stage(main)
