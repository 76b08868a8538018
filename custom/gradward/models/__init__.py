"""Networks by name: MONAI's, the small ones of the leakage literature, and a user's own."""

from gradward.models.factory import MODEL_NAMES, ModelError, build_model
from gradward.models.trainable import check_trainable

__all__ = ["MODEL_NAMES", "ModelError", "build_model", "check_trainable"]
