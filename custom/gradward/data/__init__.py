"""Images of sites and public images, from files or from what scikit-image ships."""

from gradward.data.catalog import data_root, dataset_names, dataset_spec
from gradward.data.images import DataError, ImageSet
from gradward.data.loading import SPLITS, load_split
from gradward.data.parts import PARTS
from gradward.data.public import PublicSet, load_public_set
from gradward.data.splits import group_images, split_by_patient

__all__ = [
    "PARTS",
    "SPLITS",
    "DataError",
    "ImageSet",
    "PublicSet",
    "data_root",
    "dataset_names",
    "dataset_spec",
    "group_images",
    "load_public_set",
    "load_split",
    "split_by_patient",
]
