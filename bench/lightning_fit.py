"""A plain Lightning fit: the whole network with a new head, AdamW at 1e-4, five epochs.

python bench/lightning_fit.py JOB.json ANSWER.json
"""

import networks
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


class Plain(pl.LightningModule):
    """What the guide of Lightning shows."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, _):
        """The loss of a training batch."""
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        """Logs loss and accuracy."""
        logits = self.net(batch[0])
        self.log("val_loss", cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def predict_step(self, batch, _):
        """Probabilities of a batch."""
        return self.net(batch[0]).double().softmax(1)

    def configure_optimizers(self):
        """AdamW over everything."""
        return torch.optim.AdamW(self.parameters(), 1e-4)


def loaders(read):
    recipe = read["recipe"]
    how = v2.InterpolationMode(recipe["interpolation"])
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    tensor.append(v2.Normalize(recipe["mean"], recipe["std"]))
    crop = [v2.RandomResizedCrop(recipe["size"], interpolation=how), v2.RandomHorizontalFlip()]
    centre = [v2.Resize(recipe["resize"], interpolation=how), v2.CenterCrop(recipe["size"])]
    train = ImageFolder(f"{read['root']}/train", v2.Compose([*crop, *tensor]))
    val = ImageFolder(f"{read['root']}/val", v2.Compose([*centre, *tensor]))
    return DataLoader(train, 32, shuffle=True, num_workers=2), DataLoader(val, 32, num_workers=2)


if __name__ == "__main__":
    read, device = networks.job()
    pl.seed_everything(read["seed"], verbose=False)
    train, val = loaders(read)
    model = Plain(networks.build(read, len(train.dataset.classes)))
    trainer = pl.Trainer(
        max_epochs=5,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, train, val)
    paths, labels = networks.listed(read["root"], "val")
    networks.answer(paths, labels, torch.cat(trainer.predict(model, val)))
