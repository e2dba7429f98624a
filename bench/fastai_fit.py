"""fastai's ``vision_learner(...).fine_tune(5)``, with weights from a file.

    FASTAI_PYTHON bench/fastai_fit.py JOB.json ANSWER.json

As its documentation shows it: random crops of 224 pixels out of 256 with ``aug_transforms``,
batches of 64, the body's usual cut and fastai's own head. Only the place of the weights differs:
they are loaded into the body by name, and images are normalised as these weights were trained.
"""

import networks
import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    models,
    set_seed,
    vision_learner,
)


def body(learner, read):
    """Fill the pretrained part, every tensor of it."""
    state = networks.weights(read)
    state = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    if read["library"] == "timm":
        networks.fill(learner.model[0].model, state)
    else:
        inner = learner.model[0][0]
        networks.fill(inner, {k.removeprefix("features."): v for k, v in state.items()})


if __name__ == "__main__":
    read, device = networks.job()
    set_seed(read["seed"])
    recipe = read["recipe"]
    size = recipe["size"][0]
    data = ImageDataLoaders.from_folder(
        read["root"],
        train="train",
        valid="val",
        seed=read["seed"],
        item_tfms=Resize(round(size * 256 / 224)),
        batch_tfms=[
            *aug_transforms(size=size),
            Normalize.from_stats(recipe["mean"], recipe["std"], cuda=device.type == "cuda"),
        ],
        device=device,
    )
    arch = read["model"] if read["library"] == "timm" else getattr(models, read["model"])
    learner = vision_learner(data, arch, metrics=accuracy, pretrained=False)
    body(learner, read)
    with learner.no_logging():
        learner.fine_tune(read.get("epochs", 5))
    paths, labels = networks.listed(read["root"], "val")
    with learner.no_bar():
        probabilities, _ = learner.get_preds(dl=data.test_dl(paths))
    networks.answer(paths, labels, probabilities.to(torch.float64))
