"""One update at the desk: what a researcher learns from it, and why an audit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gradward.attacks import AttackResult, AttackSpec, Budget, Observation
from gradward.attacks.beside_control import run_beside_control
from gradward.audit import AuditError, AuditResult, audit_update
from gradward.data.images import unlabelled
from gradward.metrics import ssim
from gradward.state_files import UpdateIs
from gradward.training import State, TrainingSettings

from .attack_fixtures import patches, public_mean, train
from .audit_desk import ONE, OTHER, PUBLIC, TRUTH, audit, network, trained_states


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    return trained_states()


def test_the_picture_is_recovered_and_the_control_is_not() -> None:
    before, update, _ = train(network(width=32), TRUTH, torch.tensor([1]), ONE)
    seen: list[tuple[str, float]] = []
    result = audit_update(
        network(width=32),
        before,
        update,
        image_shape=(3, 32, 32),
        settings=ONE,
        truth=TRUTH,
        public=PUBLIC,
        attacks=[AttackSpec("matching")],
        budget=Budget(evaluations=100),
        progress=lambda attack, share: seen.append((attack, share)),
    )
    (found,) = result.attacks
    assert found.real.recovered is not None and found.real.recovered > 0.8
    assert found.recovered_by_control is not None and found.recovered_by_control < 0.05
    assert found.gain == pytest.approx(found.real.recovered - max(found.recovered_by_control, 0))
    assert found.real.images is not None and found.real.scores is not None
    assert found.real.scores.ssim == pytest.approx(float(ssim(found.real.images, TRUTH)))
    # What needs no update stands beside it.
    assert result.prior is not None and result.prior.recovered == 0
    assert result.prior.ssim == pytest.approx(float(ssim(public_mean()[None], TRUTH)))
    assert result.best is not None and result.best.attack == "matching"
    assert "chosen with the truth" in result.verdict
    assert {name for name, _ in seen} == {"matching", "matching (control)"}
    assert [share for name, share in seen if name == "matching"][-1] == 1
    assert found.real.labels == (1,) and found.real.knowledge["labels"] == "inferred"


def test_a_full_state_and_a_difference_give_the_same_answer(states: tuple[State, State]) -> None:
    before, after = states
    difference = {name: after[name] - before[name] for name in before}
    as_state, as_difference = (
        audit((before, update), truth=TRUTH) for update in (after, difference)
    )
    assert (as_state.facts.update_is, as_difference.facts.update_is) == ("state", "difference")
    first, second = (r.attacks[0].real.recovered for r in (as_state, as_difference))
    assert first == pytest.approx(second, abs=0.01)


def test_facts_say_what_was_given_and_what_was_seen(states: tuple[State, State]) -> None:
    facts = audit(states).facts
    assert (facts.n_images, facts.n_images_given) == (1, False)
    assert (facts.local_steps, facts.local_steps_seen) == (1, True)
    assert (facts.batch_statistics, facts.trained) == ("seen", False)
    assert "data range 1" in facts.ssim and facts.versions["torch"] == torch.__version__
    assert facts.budget == {"evaluations": 12}

    before, after = states
    bare = {name: value for name, value in after.items() if "running" not in name}
    withheld = {name: value for name, value in bare.items() if "num_batches" not in name}
    result = audit((before, withheld), "batchnorm", "features", n_images=1)
    assert result.facts.batch_statistics == "withheld" and not result.facts.local_steps_seen
    skipped, ran = result.attacks
    assert skipped.real.status == "skipped" and skipped.control is None
    assert skipped.real.reason == "the update gives no batch statistics away"
    assert ran.real.status == "ok"


def test_without_the_truth_nothing_is_claimed(states: tuple[State, State]) -> None:
    result = audit(states, "features", "matching", labels=torch.tensor([1]))
    assert result.best is None and result.prior is None
    assert "losses of different attacks do not compare" in result.verdict
    for found in result.attacks:
        assert found.gain is None and found.real.scores is None
        assert found.control is not None and found.control.loss is not None
    matching = result.attacks[1]
    assert matching.real.knowledge["labels"] == "given"
    # The control's attack would fail for wrong labels alone if its update had others.
    assert matching.control is not None and matching.control.labels == (1,)


def test_what_is_not_recovered_is_not_called_safe(states: tuple[State, State]) -> None:
    result = audit(states, truth=OTHER)
    assert result.verdict == "Not recovered by these attacks within this budget."
    assert "safe" not in result.to_json()


def test_restarts_tell_their_spread(states: tuple[State, State]) -> None:
    result = audit(states, truth=TRUTH, attacks=[AttackSpec("matching", restarts=2)])
    (found,) = result.attacks
    assert len(found.real.restarts) == 2
    assert found.real.loss == min(restart.loss for restart in found.real.restarts)
    assert all(restart.recovered is not None for restart in found.real.restarts)
    assert found.control is not None and len(found.control.restarts) == 2


def test_a_stand_in_is_told(states: tuple[State, State]) -> None:
    result = audit(states, public=None)
    assert "stand-in" in result.facts.prior and "histology" in result.facts.notes[0]
    assert result.attacks[0].real.knowledge["prior"] == "lacked"
    given = audit(states, prior=public_mean())
    assert given.facts.prior == "given" and given.facts.notes == ()
    assert given.attacks[0].real.knowledge["prior"] == "given"


def test_a_learned_prior_never_saw_the_control(
    states: tuple[State, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def spy(*arguments: Any, **given: Any) -> object:
        seen.update(given)
        return run_beside_control(*arguments, **given)

    monkeypatch.setattr("gradward.audit.update.run_beside_control", spy)
    learning = [AttackSpec("features", learned_prior=0.3)]
    result = audit(states, attacks=learning)
    assert result.attacks[0].real.knowledge["public_images"] == "given"
    learned, control = seen["public"].images, seen["control_images"]
    assert len(learned) + len(control) == len(PUBLIC)
    assert not any(bool((image == control).flatten(1).all(1).any()) for image in learned)

    audit(states, public=unlabelled(PUBLIC.images))
    assert seen["public"] is None and len(seen["control_images"]) == len(PUBLIC)
    (refused,) = audit(states, public=None, attacks=learning).attacks
    assert refused.real.status == "skipped" and "public images" in refused.real.reason


def test_settings_that_contradict_the_update_are_told(states: tuple[State, State]) -> None:
    settings = TrainingSettings(batch_size=1, lr=0.02, epochs=3)
    (note,) = audit(states, settings=settings, n_images=1).facts.notes
    assert "counts 1 local steps, the settings make 3" in note


def test_another_number_of_true_images_is_told(states: tuple[State, State]) -> None:
    result = audit(states, truth=torch.cat([OTHER, TRUTH]))
    (note,) = result.facts.notes
    assert note.startswith("2 true images were given and 1 rebuilt: of the true images only those")
    found = result.attacks[0].real
    assert found.scores is not None and found.scores.n_images == 1
    # What it says: of all true images the most alike one is what the reconstruction is held to.
    assert found.recovered == audit(states, truth=TRUTH).attacks[0].real.recovered
    assert audit(states, truth=TRUTH).facts.notes == ()


@pytest.mark.parametrize("form", ["state", "difference"])
def test_the_control_is_rounded_as_the_update_is(
    states: tuple[State, State], form: UpdateIs, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked: list[Observation] = []

    def spy(observation: Observation, **_: Any) -> list[AttackResult]:
        attacked.append(observation)
        return []

    monkeypatch.setattr("gradward.attacks.beside_control.run_portfolio", spy)
    before, after = states
    sent = after if form == "state" else {name: after[name] - before[name] for name in before}
    halved = {k: v.half() if v.is_floating_point() else v for k, v in sent.items()}
    result = audit((before, halved), update_is=form)
    assert "difference in float16" in result.facts.notes[0] or form == "state"
    assert "The control was rounded alike" in result.facts.notes[0]
    assert len(attacked) == 2
    for observation in attacked:
        for name, change in observation.parameter_update.items():
            whole = change + before[name] if form == "state" else change
            torch.testing.assert_close(whole, whole.half().float(), rtol=1e-6, atol=1e-7)
    assert audit((before, sent), update_is=form).facts.notes == ()


def test_several_images_are_matched(tmp_path: Path) -> None:
    settings = TrainingSettings(batch_size=3, lr=0.02)
    before, update, _ = train(network(), patches()[200:203], torch.tensor([0, 1, 1]), settings)
    result = audit(
        (before, update), "matching", settings=settings, truth=patches()[200:203], n_images=3
    )
    (found,) = result.attacks
    assert found.real.scores is not None and found.real.scores.n_images == 3
    result.save(tmp_path / "audit")
    assert (tmp_path / "audit" / "matching" / "real-3.png").is_file()


def test_json_comes_back_and_the_folder_holds_it(
    tmp_path: Path, states: tuple[State, State]
) -> None:
    folder = tmp_path / "audit"
    audit(states, "features", "matching", truth=TRUTH).save(folder)
    assert (folder / "matching" / "side-by-side.png").is_file()

    result = audit(states, "features", truth=TRUTH)
    result.save(folder)
    text = (folder / "audit.json").read_text()
    assert AuditResult.from_json(text).to_json() == text == result.to_json()
    assert json.loads(text)["verdict"] == result.verdict
    pictures = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    assert pictures == [
        "features/control-1.png",
        "features/real-1.png",
        "features/side-by-side.png",
        "prior.png",
    ]
    assert all((folder / name).stat().st_mode & 0o077 == 0 for name in pictures)

    for content in ('{"schema": 2}', "[]", "{"):
        with pytest.raises(AuditError):
            AuditResult.from_json(content)
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(AuditError, match="name another folder"):
        result.save(tmp_path)
