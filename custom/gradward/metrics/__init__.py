"""How alike two pictures are, whose picture it is, and how much of it leaked."""

from gradward.metrics.classification import classification_metrics, evaluate
from gradward.metrics.judge import attacker_accuracy, train_judge
from gradward.metrics.leakage import score_reconstructions
from gradward.metrics.linkage import (
    likelihood_linkage,
    linkage_by_distance,
    same_class_gallery,
)
from gradward.metrics.matching import match
from gradward.metrics.membership import empirical_epsilon, membership_auc, membership_auc_upper
from gradward.metrics.pictures import score_pictures
from gradward.metrics.proportion import wilson_interval
from gradward.metrics.recovery import rdlv, recovered_fraction
from gradward.metrics.reidentification import MINIMUM_GALLERY, build_gallery, gallery_ranks
from gradward.metrics.scores import (
    Comparison,
    LeakageScores,
    PictureComparison,
    PictureScores,
    Scores,
    best_of_attacks,
)
from gradward.metrics.similarity import mse, psnr, ssim, ssim_matrix

__all__ = [
    "MINIMUM_GALLERY",
    "Comparison",
    "LeakageScores",
    "PictureComparison",
    "PictureScores",
    "Scores",
    "attacker_accuracy",
    "best_of_attacks",
    "build_gallery",
    "classification_metrics",
    "empirical_epsilon",
    "evaluate",
    "gallery_ranks",
    "likelihood_linkage",
    "linkage_by_distance",
    "match",
    "membership_auc",
    "membership_auc_upper",
    "mse",
    "psnr",
    "rdlv",
    "recovered_fraction",
    "same_class_gallery",
    "score_pictures",
    "score_reconstructions",
    "ssim",
    "ssim_matrix",
    "train_judge",
    "wilson_interval",
]
