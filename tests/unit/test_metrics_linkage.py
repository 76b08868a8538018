"""Linkage against closed forms and planted copies, and galleries that favour nobody."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from gradward.data.images import DataError, ImageSet
from gradward.metrics import likelihood_linkage, linkage_by_distance, same_class_gallery

torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture(scope="module")
def pictures() -> ImageSet:
    """400 blurred random pictures of two classes and 200 patients with two pictures each."""
    noise = torch.rand(400, 1, 16, 16, generator=generator())
    images = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    labels = torch.arange(400) % 2
    return ImageSet(images, labels, tuple(f"p{i // 4}-{i % 2}" for i in range(400)))


# Likelihood --------------------------------------------------------------------------------------


def test_it_names_the_candidate_of_the_greatest_likelihood() -> None:
    a = torch.tensor([0.0, 0.3, 0.9])
    gallery, released = random(40, 30, 3), random(40, 3, seed=1)
    truth = torch.arange(40) % 30
    spread = (1 - a.square()).sqrt()
    likelihood = Normal(a * gallery, spread).log_prob(released[:, None]).sum(2)
    expected = (likelihood.argmax(1) == truth).double()
    assert torch.equal(likelihood_linkage(released, gallery, a, truth), expected)


def test_two_candidates_in_closed_form() -> None:
    """The wrong one wins with the probability that noise passes half of the distance."""
    a, w = 0.6, torch.tensor([[0.0], [1.5]])
    released = a * w[0] + math.sqrt(1 - a * a) * random(10_000, 1)
    pairs = torch.tensor([[0, 1]]).expand(len(released), -1)
    found = likelihood_linkage(
        released, w, torch.tensor([a]), torch.zeros(len(released), dtype=torch.int64), pairs
    )
    expected = Normal(0.0, 1.0).cdf(torch.tensor(a * 1.5 / 2 / math.sqrt(1 - a * a)))
    assert float(found.mean()) == pytest.approx(float(expected), abs=0.015)


def test_closed_gates_give_chance_exactly_wherever_the_truth_is() -> None:
    released, gallery = random(6, 8), random(6, 50, 8, seed=1)
    for truth in (torch.zeros(6, dtype=torch.int64), torch.arange(6)):
        found = likelihood_linkage(released, gallery, torch.zeros(8), truth)
        assert torch.equal(found, torch.full((6,), 1 / 50, dtype=torch.float64))


def test_copies_in_the_gallery_share_the_first_place() -> None:
    gallery = random(1, 5, 3)
    gallery[0, 4] = gallery[0, 2]
    a = torch.full((3,), 0.99)
    found = likelihood_linkage(a * gallery[:, 2], gallery, a, torch.tensor([2]))
    assert found.tolist() == [0.5]


def test_rows_of_one_gallery_serve_all_victims() -> None:
    latents, released = random(60, 4), random(10, 4, seed=1)
    a = torch.full((4,), 0.5)
    candidates = torch.stack([torch.randperm(60, generator=generator(i))[:20] for i in range(10)])
    truth = torch.arange(10)
    assert torch.equal(
        likelihood_linkage(released, latents, a, truth, candidates),
        likelihood_linkage(released, latents[candidates], a, truth),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate": torch.ones(4)}, "gates"),
        ({"gate": torch.zeros(3)}, "fit"),
        ({"released": torch.zeros(9, 4)}, "fit"),
        ({"released": torch.full((10, 4), torch.nan)}, "finite"),
        ({"truth": torch.full((10,), 20)}, "truth"),
        ({"truth": torch.zeros(9, dtype=torch.int64)}, "truth"),
        ({"candidates": torch.zeros(10, 20, dtype=torch.int64)}, "candidates"),
        ({"gallery": torch.zeros(60, 4)}, "without candidates"),
        (
            {"gallery": torch.zeros(60, 4), "candidates": torch.full((10, 20), 60)},
            r"\[0, 60\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, torch.Tensor], words: str) -> None:
    values = {
        "released": torch.zeros(10, 4),
        "gallery": torch.zeros(10, 20, 4),
        "gate": torch.zeros(4),
        "truth": torch.zeros(10, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=words):
        likelihood_linkage(**(values | changes))


# Pictures ----------------------------------------------------------------------------------------


def test_copies_are_linked_in_any_brightness_and_strangers_are_not(pictures: ImageSet) -> None:
    victims = range(0, 400, 5)
    candidates, truth = same_class_gallery(pictures, victims, 50, generator())
    copies = pictures.images[::5]
    assert linkage_by_distance(copies, pictures.images, candidates, truth).mean() == 1
    assert linkage_by_distance(copies * 0.3 + 0.5, pictures.images, candidates, truth).mean() == 1
    strangers = torch.rand(copies.shape, generator=generator(9))
    found = linkage_by_distance(strangers, pictures.images, candidates, truth)
    assert found.mean() < 0.1


def test_a_picture_of_one_colour_gives_chance_exactly(pictures: ImageSet) -> None:
    candidates, truth = same_class_gallery(pictures, range(8), 50, generator())
    grey = torch.linspace(0, 1, 8)[:, None, None, None].expand(-1, 1, 16, 16)
    found = linkage_by_distance(grey, pictures.images, candidates, truth)
    assert torch.equal(found, torch.full((8,), 1 / 50, dtype=torch.float64))


def test_pictures_that_do_not_fit_are_refused(pictures: ImageSet) -> None:
    candidates, truth = same_class_gallery(pictures, range(3), 50, generator())
    for wrong in (torch.zeros(3, 1, 8, 8), torch.zeros(2, 1, 16, 16), torch.ones(3, 1, 16, 16) * 2):
        with pytest.raises(ValueError):
            linkage_by_distance(wrong, pictures.images, candidates, truth)


# Galleries ---------------------------------------------------------------------------------------


def test_candidates_are_of_the_victims_class_and_of_other_patients(pictures: ImageSet) -> None:
    victims = torch.arange(0, 400, 7)
    candidates, truth = same_class_gallery(pictures, victims, 90, generator())
    assert candidates.shape == (len(victims), 90)
    for row, place, victim in zip(candidates, truth.tolist(), victims.tolist(), strict=True):
        assert row[place] == victim
        assert (pictures.labels[row] == pictures.labels[victim]).all()
        assert len(row.unique()) == 90
        patients = [pictures.patients[i] for i in row.tolist()]
        assert len(set(patients)) == 90, "100 patients suffice: nobody twice"


def test_places_of_the_victims_are_uniform() -> None:
    images = ImageSet(torch.rand(40, 1, 2, 2, generator=generator()), torch.zeros(40).long())
    _, truth = same_class_gallery(images, [0] * 2000, 10, generator())
    counts = truth.bincount(minlength=10)
    assert float((counts - 200).square().sum() / 200) < 27.9, "chi-square, 9 degrees, p = .001"


def test_a_few_patients_give_second_images_before_the_gallery_fails(pictures: ImageSet) -> None:
    candidates, _ = same_class_gallery(pictures, [0], 190, generator())
    assert len(candidates.unique()) == 190
    with pytest.raises(DataError, match="other patients"):
        same_class_gallery(pictures, [0], 200, generator())
    with pytest.raises(ValueError, match="2 candidates"):
        same_class_gallery(pictures, [0], 1, generator())


def test_a_copy_of_the_victim_is_no_candidate() -> None:
    images = torch.rand(10, 1, 4, 4, generator=generator())
    images[7] = images[0]
    labelled = ImageSet(images, torch.zeros(10, dtype=torch.int64))
    candidates, _ = same_class_gallery(labelled, [0], 9, generator())
    assert 7 not in candidates
    with pytest.raises(DataError):
        same_class_gallery(labelled, [0], 10, generator())


def test_the_same_generator_draws_the_same_galleries(pictures: ImageSet) -> None:
    first, again, other = (
        same_class_gallery(pictures, range(5), 20, generator(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
