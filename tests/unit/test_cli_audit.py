"""``gradward audit`` as somebody meets it who has two files and a question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from gradward.attacks.spool import save_state
from gradward.audit.references import References
from gradward.cli import main
from gradward.data import DataError
from gradward.data.folder import read_public_folder
from gradward.data.form import ImageForm
from gradward.models import build_model
from gradward.report.pictures import save_picture
from gradward.training import TrainingSettings

from .attack_fixtures import patches, train
from .audit_desk import command_line


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with g.pt, u.npz, the true picture, public ones and a network of one's own."""
    monkeypatch.chdir(tmp_path)
    model = build_model("bn_cnn", in_channels=3, num_classes=2, image_size=[32, 32], width=8)
    settings = TrainingSettings(batch_size=1, lr=0.02)
    before, update, _ = train(model, patches()[200:201], torch.tensor([1]), settings)
    torch.save({"model": before}, "g.pt")
    save_state(Path("u.npz"), {name: before[name] + update[name] for name in before})
    save_state(Path("nan.npz"), update | {"fc.bias": torch.full((2,), torch.nan)})
    Path("broken.pt").write_bytes(b"PK no archive")
    for folder, images in (("truth", patches()[200:201]), ("public", patches()[:6])):
        Path(folder).mkdir()
        for number, image in enumerate(images):
            save_picture(Path(folder) / f"jane-doe-{number}.png", image)
    Path("bad").mkdir()
    Path("bad", "john-doe.png").write_text("no picture")
    Path("wardnet.py").write_text(
        "from gradward.models.literature import BatchNormCNN\n"
        "def make(**options):\n    return BatchNormCNN(width=8, **options)\n"
    )
    return tmp_path


def call(changes: dict[str, Any] | None = None, *flags: str) -> Result:
    options = {
        "model": "bn_cnn",
        "model-options": '{"width": 8}',
        "global": "g.pt",
        "update": "u.npz",
    }
    arguments = command_line({**options, **(changes or {})}, *flags)
    return CliRunner().invoke(main, arguments)


def test_the_batch_order_is_read_from_a_file(desk: Path) -> None:
    Path("order.json").write_text("[[0]]")
    result = call({"batches": "order.json"}, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["attacks"][0]["real"]["knowledge"]["batch_order"] == "given"
    assert content["facts"]["n_images_given"]


def test_a_prior_is_learned_from_public_pictures(desk: Path) -> None:
    def attempt(**changes: Any) -> dict[str, Any]:
        result = call({"learned-prior": 0.3, **changes}, "--json")
        assert result.exit_code == 0, result.output
        attempted: dict[str, Any] = json.loads(result.stdout)["attacks"][0]["real"]
        return attempted

    assert attempt(public="public")["knowledge"]["public_images"] == "given"
    refused = attempt(out="without")
    assert refused["status"] == "skipped" and "public images" in refused["reason"]
    # Matching learns none: the option leaves it as it is.
    alone = attempt(public="public", attack="matching", out="matching")
    assert alone["knowledge"]["public_images"] == "lacked"


def test_a_table_a_json_and_pictures(desk: Path) -> None:
    result = call({"truth": "truth", "public": "public", "attack": None, "restarts": 2})
    assert result.exit_code == 0, result.output
    assert "features (control) ..." in result.stderr
    for words in ("Recovered", "Gain", "read as a full state", "2 starts", "6 images that were"):
        assert words in result.stdout.replace("\n", " ")
    assert "jane-doe" not in result.output
    written = json.loads((desk / "out" / "audit.json").read_text())
    ran = [item["attack"] for item in written["attacks"] if item["real"]["status"] == "ok"]
    assert ran == ["batchnorm", "features", "matching"]
    assert (desk / "out" / "matching" / "side-by-side.png").is_file()

    again = call({"truth": "truth", "public": "public", "labels": "1"}, "--json")
    assert json.loads(again.stdout) == json.loads((desk / "out" / "audit.json").read_text())


def test_a_refusal_is_one_sentence(desk: Path) -> None:
    result = call({"images": 2, "attack": None})
    assert result.exit_code == 0, result.output
    said = result.stdout.replace("\n", " ")
    assert "analytic: skipped, the first linear layer 'fc' does not see the picture itself" in said
    assert "look at the pictures beside those of the control" in result.stdout.replace("\n", " ")


def test_nothing_is_told_of_attacks_where_none_ran(desk: Path) -> None:
    result = call({"attack": "analytic"})
    assert result.exit_code == 0, result.output
    assert "No attack applied" in result.stdout
    assert "Pictures" not in result.stdout
    assert json.loads(Path("out/audit.json").read_text())["facts"]["notes"] == []


def test_each_attack_takes_its_own_options(desk: Path) -> None:
    own = {"matching": {"start": "random", "tv_weight": 0.2}, "features": {"restarts": 2}}
    result = call(
        {"attack": ["features", "matching"], "attack-options": json.dumps(own), "restarts": 3},
        "--json",
    )
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    features, matching = (item["real"] for item in content["attacks"])
    assert (features["knowledge"]["prior"], len(features["restarts"])) == ("lacked", 2)
    assert (matching["knowledge"]["prior"], len(matching["restarts"])) == ("lacked", 3)
    # Whoever reads it later can repeat it.
    assert content["facts"]["attack_options"] == {"matching": own["matching"]}


def test_the_clients_loss_can_be_named(desk: Path) -> None:
    result = call({"loss": "bce", "attack": "matching"})
    assert result.exit_code == 0, result.output
    facts = json.loads(Path("out/audit.json").read_text())["facts"]
    assert facts["settings"]["loss"] == "bce"


def test_a_network_of_ones_own(desk: Path) -> None:
    result = call({"model": "wardnet:make", "model-options": None})
    assert result.exit_code == 0, result.output
    assert json.loads(Path("out/audit.json").read_text())["facts"]["model"] == "wardnet:make"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"global": "nowhere.pt"}, "nowhere.pt: there is no such file"),
        ({"update": "broken.pt"}, "broken.pt is damaged"),
        ({"update": "nan.npz"}, "'fc.bias' has values that are not finite"),
        ({"update": "g.pt"}, "nothing was trained"),
        ({"model": "lenet", "model-options": None}, "which the model does not know; check that"),
        ({"model": "resnet81"}, "unknown model 'resnet81'"),
        ({"model": "nowhere:make"}, "cannot import 'nowhere'"),
        ({"classes": 3}, "'fc.weight' must be real (3, 2048), got torch.float32 (2, 2048)"),
        ({"labels": "2"}, "label 2 is no class of this network"),
        ({"labels": "cat"}, "'cat' must be class indices"),
        ({"lr": 0}, "lr must be finite and above 0"),
        ({"budget": 0, "evaluations": None}, "'--budget': 0.0 is not in the range x>0"),
        ({"evaluations": 0}, "'--evaluations': 0 is not in the range x>=1"),
        ({"labels": "0,1", "images": 1}, "labels must be one for each image, 1 in all, got 2"),
        ({"truth": "public", "images": 1}, "1 as it was said, got 6; leave out the others"),
        ({"prior": "bad/john-doe.png"}, "the picture that --prior names cannot be read"),
        ({"truth": "bad"}, "file 1 of 1 of --truth, in the order of their names, cannot be read"),
        ({"public": "nowhere"}, "the folder of --public does not exist"),
        ({"device": "abacus"}, "there is no device 'abacus' here"),
        ({"out": "public"}, "public holds something else than an audit"),
        ({"out": "broken.pt/out"}, "broken.pt/out cannot be written: Not a directory; name"),
        ({"attack-options": "{matching}"}, "'{matching}' is not JSON"),
        ({"attack-options": '{"features": 1}'}, "must give 'features' its options by their names"),
        ({"attack-options": '{"features": {"name": "x"}}'}, "must give 'features' its options"),
        ({"attack-options": '{"matchin": {}}'}, "'matchin', which does not run; the attacks that"),
        ({"attack-options": '{"features": {"tv": 1}}'}, "has no options ['tv']; known are"),
        ({"attack-options": '{"features": {"start": "x"}}'}, "must be 'prior' or 'random'"),
    ],
)
def test_mistakes_are_named_without_a_traceback(
    desk: Path, changes: dict[str, Any], words: str
) -> None:
    result = call(changes)
    assert result.exit_code in (1, 2), result.output
    assert words in result.output and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "-doe" not in result.output
    assert not (desk / "out").exists()
    assert "(control)" not in result.output, "no attack was spent on it"


def test_public_images_in_folders_of_their_class(desk: Path) -> None:
    for label in range(4):
        Path("classes", str(label)).mkdir(parents=True)
        for number, image in enumerate(patches()[4 * label : 4 * label + 4]):
            save_picture(Path("classes", str(label), f"{number}.png"), image)
    form = ImageForm((32, 32), 3)
    sets = read_public_folder(Path("classes"), form, 4, "--public")
    assert sets.labels.tolist() == [label for label in range(4) for _ in range(4)]
    assert torch.allclose(sets.images[5], patches()[5], atol=1 / 255)
    chosen = References.choose(None, sets, (3, 32, 32))
    assert chosen.of_attacker is not None
    assert torch.bincount(chosen.of_attacker.labels).tolist() == [3, 3, 3, 3]
    together = torch.cat([chosen.control.images, chosen.of_attacker.images])
    assert len(together) == len(sets) == len(together.unique(dim=0))
    # Without labels nobody learns any.
    flat = read_public_folder(Path("public"), form, 4, "--public")
    assert References.choose(None, flat, (3, 32, 32)).of_attacker is None
    with pytest.raises(DataError, match="named by their class, 0 to 2"):
        read_public_folder(Path("classes"), form, 3, "--public")
