"""Make an update up, as a server may have one on disk, for `gradward audit` to look at.

A ResNet18 is trained for four epochs, then one client takes one step on one image of its own. Run
it in an empty folder: it writes `g.pt`, `u.pt`, `truth/`, `public/` and `prior_mean.png`. The
pictures are chest X-rays where `GRADWARD_DATA` has them, else embedded histology patches.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gradward.data import ImageSet, data_root, dataset_spec, load_public_set, load_split
from gradward.models import build_model
from gradward.report.pictures import save_picture
from gradward.training import RawImages, TrainingSettings, train_locally

SIDE = 64
TRAINED_ON = 128
BEFORE = TrainingSettings(lr=0.05, batch_size=8, epochs=4)
CLIENT = TrainingSettings(lr=0.01, batch_size=1)


def two_classes(images: ImageSet) -> ImageSet:
    """Tell the first class from all others."""
    return ImageSet(images.images, images.labels.clamp(max=1))


def main() -> None:
    """Train, let the client take its step, and write what the server has and what it has not."""
    root = data_root()
    xrays = root is not None and (root / "cxr224").is_dir()
    name, sites = (
        ("chest-xray", ("site-3", "site-9")) if xrays else ("histology", ("site-3", "site-1"))
    )
    spec = dataset_spec(name)
    form = {"image_size": (SIDE, SIDE), "channels": 1}
    others, client = (
        two_classes(load_split(spec, "training", site=site, **form)) for site in sites
    )
    public = load_public_set(spec, name=name, **form)
    # First, so that files of an earlier run are found before they are overwritten.
    for folder in ("truth", "public"):
        Path(folder).mkdir()
    model = build_model("resnet18", in_channels=1, num_classes=2, image_size=[SIDE, SIDE], seed=0)

    def train(images: ImageSet, settings: TrainingSettings) -> None:
        source = RawImages(images.images, images.labels)
        train_locally(model, source, settings, torch.Generator().manual_seed(0))

    train(others.subset(range(min(TRAINED_ON, len(others)))), BEFORE)
    torch.save(model.state_dict(), "g.pt")
    victim = client.subset([0])
    train(victim, CLIENT)
    torch.save(model.state_dict(), "u.pt")
    shown = torch.cat([public.part(part).images for part in ("control", "fit", "canary")])
    for folder, images in (("truth", victim.images), ("public", shown)):
        for number, image in enumerate(images):
            save_picture(Path(folder) / f"{number}.png", image)
    save_picture(Path("prior_mean.png"), public.prior_image)
    print(f"{name}: the update of {len(victim)} image, {len(shown)} public images")


if __name__ == "__main__":
    main()
