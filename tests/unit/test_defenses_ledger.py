"""The ledger over jobs, processes and damage."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from gradward.defenses.ledger import (
    BudgetExceeded,
    LedgerError,
    LedgerTotal,
    PrivacyLedger,
    View,
)

IMAGES = [f"image-{i}" for i in range(20)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "private" / "ledger.sqlite"


@pytest.fixture
def ledger(file: Path) -> PrivacyLedger:
    return PrivacyLedger(file, max_views=1, max_rate=5.0, max_epsilon=8.0, max_delta=1e-4)


# Views -------------------------------------------------------------------------------------------


def test_the_same_view_again_costs_nothing(ledger: PrivacyLedger, file: Path) -> None:
    for _ in range(3):
        ledger.register_views(IMAGES, "v1", 5.0)
    PrivacyLedger(file).register_view(IMAGES[0], "v1", 5.0)
    assert ledger.views(IMAGES[0]) == [View("v1", 5.0, None)]
    assert ledger.total() == LedgerTotal(images=20, views=20, rate=5.0, epsilon=0, delta=0)


def test_a_second_view_is_refused_in_any_job(ledger: PrivacyLedger, file: Path) -> None:
    ledger.register_view("image", "perturber-1", 1.0)
    for later in (ledger, PrivacyLedger(file)):
        with pytest.raises(BudgetExceeded, match="budget"):
            later.register_view("image", "perturber-2", 0.0)
    assert ledger.views("image") == [View("perturber-1", 1.0, None)]


def test_several_views_add_up_their_rates(file: Path) -> None:
    ledger = PrivacyLedger(file, max_views=3, max_rate=0.3)
    for name in ("v1", "v2", "v3"):
        ledger.register_view("image", name, 0.1)
    assert ledger.total().rate == pytest.approx(0.3)
    with pytest.raises(BudgetExceeded):
        PrivacyLedger(file, max_views=9, max_rate=0.3).register_view("image", "v4", 0.1)
    PrivacyLedger(file, max_views=9, max_rate=0.4).register_view("image", "v4", 0.1)


def test_a_rate_past_the_limit_is_refused_and_a_rounded_one_is_not(ledger: PrivacyLedger) -> None:
    ledger.register_view("rounded", "v1", 5.0000005)
    with pytest.raises(BudgetExceeded):
        ledger.register_view("image", "v1", 5.001)
    assert ledger.views("image") == []


def test_many_images_are_registered_all_or_none(ledger: PrivacyLedger) -> None:
    ledger.register_view(IMAGES[10], "old", 1.0)
    with pytest.raises(BudgetExceeded, match="1 of 20 images"):
        ledger.register_views(IMAGES, "new", 1.0)
    assert ledger.total().views == 1
    rest = [image for image in IMAGES if image != IMAGES[10]]
    ledger.register_views([*rest, rest[0]], "new", 1.0)
    assert ledger.total().views == 20


def test_a_degraded_view_costs_nothing(ledger: PrivacyLedger) -> None:
    ledger.register_view("image", "v1", 5.0)
    ledger.register_view("image", "v1/0.5", 1.0, parent="v1")
    ledger.register_view("image", "v1/0.25", 0.2, parent="v1/0.5")
    assert ledger.total() == LedgerTotal(images=1, views=3, rate=5.0, epsilon=0, delta=0)
    with pytest.raises(BudgetExceeded):
        ledger.register_view("image", "v2", 0.2)


def test_degraded_views_take_no_room_of_later_ones(file: Path) -> None:
    ledger = PrivacyLedger(file, max_views=2, max_rate=2.0)
    ledger.register_view("image", "v1", 1.0)
    for c in ("0.9", "0.8"):
        ledger.register_view("image", f"v1/{c}", 0.9, parent="v1")
    ledger.register_view("image", "v2", 1.0)
    assert ledger.total().rate == 2.0


def test_what_only_claims_to_be_degraded_is_refused(ledger: PrivacyLedger) -> None:
    ledger.register_view("image", "v1", 2.0)
    with pytest.raises(LedgerError, match="parent"):
        ledger.register_view("image", "v2", 1.0, parent="never made")
    with pytest.raises(LedgerError, match="parent"):
        ledger.register_view("another image", "v2", 1.0, parent="v1")
    with pytest.raises(LedgerError, match="no less"):
        ledger.register_view("image", "v2", 2.1, parent="v1")
    assert ledger.total().views == 1


def test_one_name_stands_for_one_view(ledger: PrivacyLedger) -> None:
    ledger.register_view("image", "v1", 2.0)
    with pytest.raises(LedgerError, match="another rate"):
        ledger.register_view("image", "v1", 1.0)
    with pytest.raises(LedgerError, match="another parent"):
        ledger.register_view("image", "v1", 2.0, parent="v1")


# Releases ----------------------------------------------------------------------------------------


def test_releases_add_up_over_jobs(ledger: PrivacyLedger, file: Path) -> None:
    ledger.register_release("r1", 4.0, 1e-5)
    ledger.register_release("r1", 4.0, 1e-5)
    PrivacyLedger(file, max_epsilon=8.0).register_release("r2", 4.0, 1e-5)
    with pytest.raises(BudgetExceeded, match=r"epsilon 8\.01"):
        ledger.register_release("r3", 0.01, 1e-6)
    assert ledger.total().epsilon == 8.0
    assert ledger.total().delta == pytest.approx(2e-5)
    with pytest.raises(LedgerError, match="another epsilon"):
        ledger.register_release("r1", 3.0, 1e-5)


def test_delta_has_a_limit_of_its_own(ledger: PrivacyLedger) -> None:
    with pytest.raises(BudgetExceeded):
        ledger.register_release("r1", 1.0, 2e-4)
    assert ledger.total().epsilon == 0


def test_ten_tenths_are_one(file: Path) -> None:
    ledger = PrivacyLedger(file, max_epsilon=1.0)
    for number in range(10):
        ledger.register_release(f"r{number}", 0.1, 0.0)
    with pytest.raises(BudgetExceeded):
        ledger.register_release("r10", 0.1, 0.0)


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_amounts_that_are_none_are_refused(ledger: PrivacyLedger, amount: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        ledger.register_view("image", "v1", amount)
    with pytest.raises(ValueError, match="epsilon"):
        ledger.register_release("r1", amount, 0.0)
    with pytest.raises(ValueError, match="delta"):
        ledger.register_release("r1", 1.0, amount)
    assert ledger.total().views == 0


@pytest.mark.parametrize(
    "limits",
    [{"max_views": -1}, {"max_views": 1.5}, {"max_rate": -1.0}, {"max_delta": float("nan")}],
)
def test_limits_that_are_none_are_refused(file: Path, limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        PrivacyLedger(file, **limits)
    assert not file.exists()


# Processes ---------------------------------------------------------------------------------------


def _race(file: Path, number: int, start: object, answers: object) -> None:
    start.wait()
    ledger = PrivacyLedger(file, max_views=1, max_epsilon=5.0)
    granted = 0
    for release in range(4):
        try:
            ledger.register_release(f"{number}-{release}", 1.0, 0.0)
            granted += 1
        except BudgetExceeded:
            pass
    try:
        ledger.register_views(IMAGES, f"view-{number}", 1.0)
        won = True
    except BudgetExceeded:
        won = False
    answers.put((won, granted))


def test_processes_that_race_never_pass_the_budget(file: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_race, args=(file, i, start, answers)) for i in range(4)]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(won for won, _ in results) == 1, "one of four views, for all images"
    assert sum(granted for _, granted in results) == 5
    ledger = PrivacyLedger(file)
    assert ledger.total() == LedgerTotal(images=20, views=20, rate=1.0, epsilon=5.0, delta=0)
    assert len({ledger.views(image)[0].view_id for image in IMAGES}) == 1


# Damage ------------------------------------------------------------------------------------------


def test_the_file_is_for_its_owner_alone(ledger: PrivacyLedger, file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def _emptied(file: Path) -> None:
    file.write_bytes(b"")


def _overwritten(file: Path) -> None:
    file.write_bytes(b"not a database, but longer than the header of one" * 100)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _scribbled(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:4196] = b"\xff" * 100
    file.write_bytes(bytes(content))


def _replaced(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE views (image, view, rate, parent)")
        connection.execute("CREATE TABLE releases (release, epsilon, delta)")
    connection.close()


@pytest.mark.parametrize("damage", [_emptied, _overwritten, _cut, _scribbled, _replaced])
def test_a_damaged_ledger_allows_nothing(ledger: PrivacyLedger, file: Path, damage: object) -> None:
    ledger.register_views([f"image-{i}" for i in range(500)], "v1", 1.0)
    damage(file)
    before = file.read_bytes()
    with pytest.raises(LedgerError, match="ledger"):
        PrivacyLedger(file)
    assert file.read_bytes() == before, "damage is for a person to repair"


def test_a_ledger_removed_under_way_is_missed(ledger: PrivacyLedger, file: Path) -> None:
    ledger.register_view("image", "v1", 1.0)
    file.unlink()
    with pytest.raises(LedgerError, match="cannot be used"):
        ledger.register_view("image", "v2", 1.0)
    assert not file.exists()


def test_a_ledger_that_cannot_be_written_is_told(ledger: PrivacyLedger, file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON views BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    other.close()
    with pytest.raises(LedgerError, match="cannot be used"):
        ledger.register_views(IMAGES, "v1", 1.0)
    assert ledger.total().views == 0


def test_messages_name_no_image(ledger: PrivacyLedger) -> None:
    ledger.register_view("0123abcd", "v1", 1.0)
    for attempt in (
        lambda: ledger.register_view("0123abcd", "v2", 1.0),
        lambda: ledger.register_view("0123abcd", "v1", 2.0),
        lambda: ledger.register_view("0123abcd", "v2", 1.0, parent="v0"),
    ):
        with pytest.raises(LedgerError) as caught:
            attempt()
        assert "0123abcd" not in str(caught.value)
