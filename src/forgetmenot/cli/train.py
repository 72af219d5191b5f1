"""Train one model: `python -m forgetmenot.cli.train --request <file>`."""

import os

from forgetmenot.stage import Job, stage


def main(job: Job) -> None:
    """Train the model that `job.spec` describes.

    Spec: `model` (see model.py; `vocab: null` = the data's), `train` (train/options.py), `data`
    (list of {"dataset", "builder", "weight", "options"}; each dataset an input of that name),
    `trainable` ("all" or "generator"), `device` ("auto", "cpu" or "cuda"). An input `init` is a
    trained model to start from.
    """
    import torch

    from forgetmenot import model as models
    from forgetmenot.files import sha256_json
    from forgetmenot.train import setup
    from forgetmenot.train.loop import Trainer

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    spec = job.spec
    options = setup.options(spec["train"])
    accelerator = setup.accelerator(spec["device"], options.precision)
    model_spec = dict(spec["model"])
    if model_spec["vocab"] is None:
        model_spec["vocab"] = setup.vocabulary(spec["data"], job.inputs)
    model = models.build(model_spec)
    model.init_parameters(job.seed)
    if "init" in job.inputs:
        models.load_weights(model.base, job.inputs["init"])
    setup.freeze(model, spec["trainable"])
    trainer = Trainer(
        model,
        setup.mixture(spec["data"], job.inputs, job.seed),
        options,
        accelerator=accelerator,
        work=job.work,
        identity=sha256_json({"spec": spec, "seed": job.seed}),
        name=job.name,
        log=lambda metrics, step: job.run.log(metrics, step),
    )
    trainer.run(job.out)
    if accelerator.is_main_process:
        models.save(model, job.out)
    job.volatile = ("curve.jsonl",)


if __name__ == "__main__":
    stage(main)
