"""No patient on two sides, sizes near the shares, the same split everywhere."""

from __future__ import annotations

import random

import pytest

from gradward.data import DataError, group_images, split_by_patient


def _patients(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"p{draw.randrange(120)}" for _ in range(400)]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_whole_patients_near_shares(seed: int) -> None:
    patients = _patients(seed)
    parts = split_by_patient(patients, (0.5, 0.3, 0.2), seed=seed)
    assert sorted(i for part in parts for i in part) == list(range(400))
    held = [{patients[i] for i in part} for part in parts]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    largest = max(patients.count(p) for p in patients)
    for part, share in zip(parts, (0.5, 0.3, 0.2), strict=True):
        assert abs(len(part) - share * 400) <= largest


def test_deterministic_and_seeded() -> None:
    patients = _patients(3)
    assert split_by_patient(patients, (1, 1)) == split_by_patient(patients, (1, 1))
    assert split_by_patient(patients, (1, 1)) != split_by_patient(patients, (1, 1), seed=1)


def test_does_not_depend_on_the_order_of_the_images() -> None:
    patients = _patients(4)
    forward = split_by_patient(patients, (2, 1))
    backward = split_by_patient(patients[::-1], (2, 1))
    assert {patients[i] for i in forward[1]} == {patients[::-1][i] for i in backward[1]}


def test_strata_hold_the_shares_within_each_class() -> None:
    labels = [0] * 90 + [1] * 10
    parts = split_by_patient([str(i) for i in range(100)], (0.5, 0.5), strata=labels)
    assert [sum(labels[i] for i in part) for part in parts] == [5, 5]


def test_a_patient_larger_than_any_share_stays_whole() -> None:
    parts = split_by_patient(["a"] * 8 + ["b", "c"], (1, 1))
    assert sorted(map(len, parts)) == [2, 8]


@pytest.mark.parametrize("shares", [(), (1, 0), (1, -1)])
def test_bad_shares(shares: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="positive"):
        split_by_patient(["a"], shares)


def test_groups_join_over_patients_and_equal_pixels() -> None:
    # 0 and 1 share a patient, 1 and 2 share pixels, 4 is alone and nameless.
    groups = group_images(["a", "a", "b", "c", ""], ["h0", "h1", "h1", "h3", "h4"])
    assert groups == ["a", "a", "a", "c", "image-4"]
