"""The attack and the filter of docs/extending.md, used as that page says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.private.json_configer import ConfigContext, JsonConfigurator

from gradward.attacks import AttackSpec
from gradward.flare.allow_list import NEEDED_CLASSES
from gradward.flare.policies import ScoringPolicy, SiteSettingsError
from gradward.flare.protocol import ScoreRequest
from gradward.flare.states import MessageError

from .test_flare_update_filters import message, task, update

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PATH = "my_attack.SquaresByAdam"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples lie where Python looks, as in a job's custom folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("my_attack", "my_filter"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file", ["my_attack.py", "my_filter.py"])
def test_the_examples_are_short(file: str) -> None:
    assert len((EXAMPLES / file).read_text().splitlines()) < 60


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"path": PATH, "name": "matching"}, "a name or a path"),
        ({"path": "os.system"}, "no dataclass 'system'"),
        ({"path": "os:system"}, "package.module.Class"),
        ({"path": ".my_attack.SquaresByAdam"}, "package.module.Class"),
        ({"path": "not_here.SquaresByAdam"}, "cannot import"),
        ({"path": "gradward.attacks.Budget"}, "lacks the methods"),
        ({"path": PATH, "speed": 2}, "no options"),
        ({"path": PATH, "config_type": "dict"}, "no options"),
        ({"path": PATH, "lr": "fast"}, "must be a number"),
        ({"name": "SquaresByAdam"}, "by its path"),
    ],
)
def test_what_is_no_attack_is_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        AttackSpec.check_all([spec])


def test_no_class_takes_the_name_of_one_of_ours(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "theirs.py").write_text("from my_attack import SquaresByAdam as matching\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="needs another name"):
        AttackSpec(path="theirs.matching")


def test_without_the_right_to_bring_code_the_allow_list_decides(tmp_path: Path) -> None:
    """NVFlare itself looks at the path of an attack before anything imports it."""
    spec = {"path": PATH}
    assert build_auditor(tmp_path, [], spec) == (False, False)
    assert build_auditor(tmp_path, [PATH], spec) == (True, True)
    # No word beside the path takes it out of NVFlare's sight.
    assert build_auditor(tmp_path, [], spec | {"name": "matching"}) == (False, False)
    assert build_auditor(tmp_path, [], spec | {"config_type": "dict"}) == (False, False)


def build_auditor(party: Path, listed: list[str], attack: dict[str, Any]) -> tuple[bool, bool]:
    """Let NVFlare build an auditor; return whether it did, and whether the attack was imported."""
    for folder in ("local", "startup"):
        (party / folder).mkdir(exist_ok=True)
    (party / "local" / "resources.json").write_text(
        json.dumps({"class_allow_list": [*NEEDED_CLASSES, *listed]})
    )
    auditor = {
        "id": "auditor",
        "path": "gradward.flare.auditor.InversionAuditor",
        "args": {"attacks": [attack], "budget": {"evaluations": 1}},
    }
    config = party / "config.json"
    config.write_text(json.dumps({"format_version": 2, "components": [auditor]}))
    authorizer, workspace = ComponentPathAuthorizer(), Workspace(str(party))
    built: list[Any] = []

    class Configurator(JsonConfigurator):
        """Builds the components of a job as NVFlare's server does."""

        def process_config_element(self, config_ctx: ConfigContext, node: Any) -> None:
            if isinstance(node.element, dict) and node.element.get("id") == "auditor":
                built.append(self.authorize_and_build_component(node.element, config_ctx, node))

    def look(component: Any, context: Any, node: Any) -> str:
        try:
            authorizer.authorize_component_config(component, node, workspace=workspace)
        except UnsafeComponentError as error:
            return str(error)
        return ""

    configurator = Configurator(
        config_file_name=str(config), base_pkgs=["nvflare"], module_names=["app_common"]
    )
    configurator.set_component_build_authorizer(look)
    sys.modules.pop("my_attack", None)
    with suppress(Exception):
        configurator.configure()
    return bool(built), "my_attack" in sys.modules


def test_a_site_answers_to_the_attacks_that_it_lists() -> None:
    request = ScoreRequest("a", 0, "SquaresByAdam", np.zeros((1, 1, 8, 8), np.float32), None, "")
    shareable = request.to_shareable()
    with pytest.raises(MessageError, match=r"scoring\.attacks"):
        ScoreRequest.from_shareable(shareable, (1, 8, 8))
    policy = ScoringPolicy(attacks=["SquaresByAdam"])
    ScoreRequest.from_shareable(shareable, (1, 8, 8), policy.attacks)
    for bad in ("SquaresByAdam", ["../truths"], ["a b"], [1], [""]):
        with pytest.raises(SiteSettingsError, match="attacks"):
            ScoringPolicy(attacks=bad)  # type: ignore[arg-type]


def test_the_filter_shortens_what_leaves_and_no_more(tmp_path: Path) -> None:
    from my_filter import ClippedUpdate

    left = from_shareable(ClippedUpdate(0.5).process(message(), task(tmp_path))).data
    trained = [name for name in left if "running" not in name and "num_batches" not in name]
    norm = np.sqrt(sum((left[name].astype(np.float64) ** 2).sum() for name in trained))
    assert norm == pytest.approx(0.5, abs=1e-6)
    whole = update()
    for name in set(left) - set(trained):
        np.testing.assert_array_equal(left[name], whole[name])
    untouched = from_shareable(ClippedUpdate(1e6).process(message(), task(tmp_path))).data
    np.testing.assert_array_equal(untouched["conv.weight"], whole["conv.weight"])


@pytest.mark.parametrize("bad", [0, -1, True, "1"])
def test_a_bad_bound_stops_the_job(bad: Any) -> None:
    from my_filter import ClippedUpdate

    with pytest.raises((TypeError, ValueError), match="max_norm"):
        ClippedUpdate(bad)


def test_what_the_filter_cannot_change_stays_at_home(tmp_path: Path) -> None:
    from my_filter import ClippedUpdate

    broken = message(update() | {"fc.bias": np.full(4, np.nan, np.float32)})
    reply = ClippedUpdate(0.5).process(broken, task(tmp_path))
    assert reply.get_return_code() != "OK"


def test_a_typo_on_the_command_line_is_told() -> None:
    command = [sys.executable, "-m", "gradward", "audit", "--attack", "matchin"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and "matchin" in told.stderr
