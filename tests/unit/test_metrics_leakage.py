"""Galleries, re-identification and the scores of a reconstruction, on real pictures."""

import dataclasses
import json
import math

import pytest
import torch
from skimage import data
from torch.nn import functional as F

from gradward.data.images import DataError, ImageSet
from gradward.metrics import (
    Comparison,
    Scores,
    best_of_attacks,
    build_gallery,
    gallery_ranks,
    score_pictures,
    score_reconstructions,
    ssim,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pictures():
    """256 disjoint 32x32 patches of a histology picture, two classes."""
    picture = torch.from_numpy(data.immunohistochemistry()).permute(2, 0, 1) / 255
    images = picture.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4)
    images = images.reshape(-1, 3, 32, 32)
    return ImageSet(images, torch.arange(len(images)) % 2)


def noise(n, seed=0):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def blurred(images):
    return F.interpolate(F.avg_pool2d(images, 8), scale_factor=8, mode="bilinear")


def score(pictures, n_site, positions, reconstructions, control=None, **changes):
    site, public = pictures.subset(range(n_site)), pictures.subset(range(n_site, 256))
    mean = public.images.mean(0)
    arguments = {
        "truths": site.subset(positions),
        "prior_image": mean,
        "mean_image": mean,
        "site_images": site,
        "truth_positions": positions,
        "decoys": public,
    } | changes
    return score_reconstructions(reconstructions, control, **arguments)


def test_a_copy_recovers_everything(pictures):
    truths = pictures.images[[4, 1, 9]]
    scores = score(pictures, 20, [4, 1, 9], truths[[2, 0, 1]], noise(3))
    real = scores.real
    assert (real.n_images, real.gallery) == (3, 100)
    assert (real.mse, real.psnr, real.reid, real.rank) == (0, 100, 1, 1)
    assert real.ssim == pytest.approx(1, abs=1e-6)
    assert real.recovered == pytest.approx(1, abs=1e-5)
    assert real.leakage == pytest.approx(1 - real.prior_ssim, abs=0.05)
    assert scores.assignment[1].tolist() == [2, 0, 1]
    assert scores.control.reid == 0
    assert scores.control.recovered < 0.1
    assert (scores.prior.rdlv, scores.prior.recovered, scores.prior.leakage) == (0, 0, 0)
    assert scores.prior.prior_ssim == scores.prior.ssim == pytest.approx(real.prior_ssim)


def test_pictures_score_the_same_without_a_gallery(pictures):
    truths, control = pictures.images[[4, 1]], noise(2)
    mean = pictures.images[20:].mean(0)
    plain = score_pictures(truths.flip(0), control, truths, mean, mean)
    full = score(pictures, 20, [4, 1], truths.flip(0), control)
    for role in ("real", "control", "prior"):
        with_gallery = dataclasses.asdict(getattr(full, role))
        assert dataclasses.asdict(getattr(plain, role)).items() <= with_gallery.items()
    # Each row shows the control of the same truth, whichever way either was matched.
    shown = plain.assignment[1].tolist()
    of_truth = dict(zip(*(half.tolist() for half in plain.control_assignment[::-1]), strict=True))
    assert plain.control_beside.tolist() == [of_truth[column] for column in shown]
    assert score_pictures(truths, None, truths, mean, mean).control_beside is None
    with pytest.raises(ValueError, match="at least one"):
        score_pictures(truths[:0], None, truths, mean, mean)


def test_each_image_has_the_scores_that_the_means_are_of(pictures):
    """Six truths, four pictures of them out of order, one of another image."""
    positions = [4, 1, 9, 7, 12, 3]
    truths = pictures.images[positions]
    found = torch.cat([truths[[3, 0]], blurred(truths[[1]]), pictures.images[[200]]])
    control = noise(4)
    scores = score(pictures, 20, positions, found, control)
    rows, columns = (half.tolist() for half in scores.assignment)
    unmatched = sorted(set(range(6)) - set(columns))
    each, gallery = scores.each.real, torch.cat([pictures.images[:20], pictures.images[20:100]])
    for row, column in zip(rows, columns, strict=True):
        one = score(pictures, 20, [positions[column]], found[[row]]).real
        assert each.ssim[column] == pytest.approx(one.ssim, abs=1e-6)
        assert each.recovered[column] == pytest.approx(one.recovered, abs=1e-5)
        distances = (gallery - found[row]).square().flatten(1).mean(1)
        nearer = (distances < distances[positions[column]]).sum()
        assert each.rank[column] == 1 + nearer
    assert each.rank[0] == each.rank[3] == 1, "the two copies are recognised"
    for values in (each.ssim, each.recovered, each.rank, scores.each.prior.ssim):
        assert values.isnan().nonzero().flatten().tolist() == unmatched
    for role in ("real", "control", "prior"):
        by_image, means = getattr(scores.each, role), getattr(scores, role)
        for name in ("ssim", "recovered"):
            assert float(getattr(by_image, name).nanmean()) == pytest.approx(getattr(means, name))
        assert float((by_image.rank == 1).sum() / means.n_images) == pytest.approx(means.reid)
    of_control = (~scores.each.control.rank.isnan()).nonzero().flatten().tolist()
    assert of_control == sorted(scores.control_assignment[1].tolist())


def test_noise_and_means_are_not_reidentified(pictures):
    positions = list(range(40))
    mean = pictures.images[:40].mean(0, keepdim=True)
    for guess in (noise(40), blurred(mean).expand(40, -1, -1, -1)):
        real = score(pictures, 120, positions, guess).real
        assert real.gallery == 120
        assert real.reid <= 1 / 40
        assert 40 < real.rank < 80
        # Not 0: this is the mean of the very truths, which no public mean quite equals.
        assert real.leakage < 0.05


def test_a_site_with_one_image_is_not_recognised_for_free(pictures):
    scores = score(pictures, 1, [0], noise(1), noise(1, seed=1))
    assert scores.real.gallery == scores.prior.gallery == 100
    assert scores.real.reid == scores.control.reid == scores.prior.reid == 0
    # A leaking reconstruction is, though it is blurred.
    assert score(pictures, 1, [0], blurred(pictures.images[:1])).real.reid == 1


def test_control_takes_its_share_of_the_leakage(pictures):
    truths = pictures.images[:4]
    alone = score(pictures, 4, range(4), truths)
    beside = score(pictures, 4, range(4), truths, truths.flip(0))
    assert alone.control is None
    assert alone.real.leakage > 0.5
    assert beside.real.leakage == 0
    assert beside.control.recovered == pytest.approx(1, abs=1e-5)
    assert dataclasses.replace(alone.real, leakage=0.0) == beside.real
    # One control picture for four truths is the control of all four.
    fewer = score(pictures, 4, range(4), truths, truths[:1])
    one_to_all = ssim(truths[:1].expand(4, -1, -1, -1), truths)
    guess = ssim(pictures.images[4:].mean(0).expand(4, -1, -1, -1), truths)
    expected = (1 - torch.maximum(one_to_all, guess)).mean().item()
    assert fewer.real.leakage == pytest.approx(expected, abs=1e-5)


def test_more_or_fewer_reconstructions_than_truths(pictures):
    truths = pictures.images[:4]
    fewer = score(pictures, 4, range(4), truths[2:3])
    assert (fewer.real.n_images, fewer.prior.n_images) == (1, 1)
    more = score(pictures, 4, [0, 1], torch.cat([noise(2), truths[:2]]))
    assert more.real.n_images == 2
    assert more.assignment[0].tolist() == [2, 3]
    assert more.real.reid == 1


def test_perfect_prior_is_undefined_not_infinite(pictures):
    truth = pictures.images[0]
    scores = score(pictures, 1, [0], truth[None], prior_image=truth, mean_image=noise(1)[0])
    assert math.isnan(scores.real.recovered)
    written = scores.real.to_dict()
    assert written["recovered"] is None
    assert json.loads(json.dumps(written))["gallery"] == 100


def test_errors(pictures):
    with pytest.raises(ValueError, match="truth_positions"):
        score(pictures, 4, [0], noise(1), truths=pictures.subset([1]))
    with pytest.raises(ValueError, match="at least one"):
        score(pictures, 4, [0], noise(0))
    with pytest.raises(ValueError, match="finite"):
        score(pictures, 4, [0], noise(1) * torch.nan)
    with pytest.raises(DataError, match="declare more"):
        score(pictures, 4, [0], noise(1), decoys=pictures.subset(range(4, 90)))


def test_gallery_takes_decoys_of_the_class_first_and_no_picture_twice(pictures):
    site = pictures.subset([0, 2, 2])
    decoys = pictures.subset([2, 3, 5, 4, 4, 6])  # classes 0 1 1 0 0 0
    gallery, places = build_gallery(site, decoys, [1, 2, 0], minimum=5)
    assert torch.equal(gallery, pictures.images[[0, 2, 4, 6, 3]])
    assert places.tolist() == [1, 1, 0]
    with pytest.raises(DataError, match="at least 7 different"):
        build_gallery(site, decoys, [0], minimum=7)
    with pytest.raises(DataError, match="do not fit"):
        build_gallery(site, ImageSet(torch.rand(9, 1, 32, 32), torch.zeros(9).long()), [0])


def test_a_tie_is_not_a_reidentification():
    gallery = torch.tensor([0.2, 0.2, 0.5, 0.9]).reshape(4, 1, 1, 1).expand(4, 1, 4, 4)
    guess = torch.tensor([0.2, 0.5, 0.9, 0.9]).reshape(4, 1, 1, 1).expand(4, 1, 4, 4)
    ranks = gallery_ranks(guess, torch.tensor([0, 2, 1, 3]), gallery)
    assert ranks.tolist() == [1.5, 1.0, 3.5, 1.0]
    with pytest.raises(ValueError, match="truth_index"):
        gallery_ranks(guess, torch.tensor([0, 1, 2, 4]), gallery)
    with pytest.raises(ValueError, match="do not fit"):
        gallery_ranks(guess, torch.tensor([0]), gallery)


def test_best_of_attacks_raises_the_bar_as_well(pictures):
    truths = pictures.images[:2]
    good = score(pictures, 2, [0, 1], blurred(truths), noise(2))
    bad = score(pictures, 2, [0, 1], noise(2, seed=1), blurred(truths))
    best = best_of_attacks([good, bad])
    assert best.real.recovered == best.control.recovered == good.real.recovered
    assert best.real.rank == 1
    assert best.real.mse == good.real.mse
    assert best.prior == good.prior
    assert best_of_attacks([good, score(pictures, 2, [0, 1], truths)]).control is None
    with pytest.raises(ValueError, match="no attacks"):
        best_of_attacks([])


def test_nan_is_chosen_only_if_there_is_nothing_else():
    values = dict.fromkeys((field.name for field in dataclasses.fields(Scores)), 1)
    values["recovered"] = None
    undefined = Scores.from_dict(values)
    defined = Scores.from_dict(values | {"recovered": 0.12345})
    one = best_of_attacks(
        [Comparison(undefined, None, undefined), Comparison(defined, None, defined)]
    ).real
    assert one.to_dict(digits=2)["recovered"] == 0.12
    assert one.to_dict(digits=2)["gallery"] == 1
    assert math.isnan(best_of_attacks([Comparison(undefined, None, undefined)]).real.recovered)
