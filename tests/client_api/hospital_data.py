"""Where the hospitals of the example have their pictures: the embedded ones."""

from torch.utils.data import TensorDataset


def training_images(site: str) -> TensorDataset:
    from gradward.data import load_split

    images = load_split(
        {"format": "embedded"}, "training", site=site, image_size=(32, 32), channels=3
    )
    return TensorDataset(images.images, images.labels)
