"""How alike two pictures are, whose picture it is, and how much of it leaked."""

from gradward.metrics.classification import classification_metrics, evaluate
from gradward.metrics.leakage import score_reconstructions
from gradward.metrics.matching import match
from gradward.metrics.recovery import rdlv, recovered_fraction
from gradward.metrics.reidentification import MINIMUM_GALLERY, build_gallery, gallery_ranks
from gradward.metrics.scores import Comparison, LeakageScores, Scores, best_of_attacks
from gradward.metrics.similarity import mse, psnr, ssim, ssim_matrix

__all__ = [
    "MINIMUM_GALLERY",
    "Comparison",
    "LeakageScores",
    "Scores",
    "best_of_attacks",
    "build_gallery",
    "classification_metrics",
    "evaluate",
    "gallery_ranks",
    "match",
    "mse",
    "psnr",
    "rdlv",
    "recovered_fraction",
    "score_reconstructions",
    "ssim",
    "ssim_matrix",
]
