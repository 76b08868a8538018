"""Networks by name: shapes, seeds, errors, and the rehearsal of a training step."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from gradward.models import MODEL_NAMES, ModelError, build_model, check_trainable

torch.set_num_threads(1)


def own_factory(in_channels, num_classes, image_size, depth=1):
    head = nn.Linear(in_channels * math.prod(image_size), num_classes)
    return nn.Sequential(nn.Flatten(), *[nn.Identity()] * depth, head)


def no_module(in_channels, num_classes, image_size):
    return "not a module"


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_name_gives_logits(name, channels):
    model = build_model(name, in_channels=channels, num_classes=5, image_size=[32, 40], seed=0)
    assert model.training
    assert model.eval()(torch.rand(2, channels, 32, 40)).shape == (2, 5)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_seed_fixes_weights_and_spares_the_global_generator(name):
    arguments = {"in_channels": 1, "num_classes": 2, "image_size": [32, 32]}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = build_model(name, **arguments, seed=1)
    assert torch.equal(torch.rand(3), expected)
    second = build_model(name, **arguments, seed=1)
    other = build_model(name, **arguments, seed=2)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_lenet_is_the_published_network():
    model = build_model("lenet", in_channels=3, num_classes=100, image_size=[32, 32], seed=0)
    assert model.fc.in_features == 768
    assert [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d)] == [2, 2, 1]
    weights = torch.cat([p.flatten() for p in model.parameters()])
    assert weights.abs().max() <= 0.5
    assert weights.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.02)


def test_bn_cnn_width_and_fresh_statistics():
    model = build_model("bn_cnn", in_channels=1, num_classes=2, image_size=[28, 28], width=4)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [4, 8, 16]
    assert all(m.num_batches_tracked == 0 and m.training for m in norms)


def test_built_from_json_by_nvflare():
    class_utils = pytest.importorskip("nvflare.fuel.utils.class_utils")
    arguments = json.loads(
        '{"name": "bn_cnn", "in_channels": 3, "num_classes": 2, "image_size": [32, 32], "seed": 1}'
    )
    model = class_utils.instantiate_class("gradward.models.build_model", arguments)
    assert isinstance(model, nn.Module)


class FixedNet(nn.Linear):
    """As jobs of others have them: without any of our keywords."""

    def __init__(self, width=4):
        super().__init__(width, 2)


def test_a_network_of_fixed_form_is_asked_for_nothing_it_does_not_know():
    name = f"{__name__}:FixedNet"
    model = build_model(name, in_channels=1, num_classes=2, image_size=(8, 8), width=3, seed=1)
    assert isinstance(model, FixedNet) and model.in_features == 3


def test_own_factory_takes_options():
    name = f"{__name__}:own_factory"
    model = build_model(name, in_channels=1, num_classes=2, image_size=(8, 8), depth=2)
    assert len(model) == 4


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("resnet19", {}, "resnet18, densenet121, lenet, bn_cnn"),
        ("no_such_package.module:factory", {}, "cannot import"),
        (":factory", {}, "cannot import"),
        (".module:factory", {}, "cannot import"),
        (f"{__name__}:absent", {}, "no callable 'absent'"),
        (f"{__name__}:no_module", {}, "must return a torch.nn.Module, got str"),
        (f"{__name__}:own_factory", {"colour": 1}, "colour"),
        ("lenet", {"width": 3}, "width"),
        ("lenet", {"in_channels": 0}, "in_channels"),
        ("lenet", {"num_classes": True}, "num_classes"),
        ("lenet", {"image_size": [32]}, "image_size"),
        ("lenet", {"image_size": 32}, "image_size"),
        ("lenet", {"image_size": "28"}, "image_size"),
    ],
)
def test_errors_say_what_is_wrong(name, changes, words):
    arguments = {"in_channels": 1, "num_classes": 2, "image_size": [28, 28]} | changes
    with pytest.raises(ModelError, match=words):
        build_model(name, **arguments)


@pytest.mark.parametrize(
    ("name", "size", "batch", "fits"),
    [
        ("densenet121", 32, 1, False),
        ("densenet121", 28, 1, False),
        ("densenet121", 64, 1, True),
        ("densenet121", 32, 2, True),
        ("densenet121", 16, 2, False),
        ("resnet18", 16, 1, False),
        ("resnet18", 32, 1, True),
        ("resnet18", 28, 1, True),
        ("bn_cnn", 28, 1, True),
        ("lenet", 28, 1, True),
    ],
)
def test_check_trainable(name, size, batch, fits):
    model = build_model(name, in_channels=1, num_classes=2, image_size=[size, size], seed=0).eval()
    before = copy.deepcopy(model.state_dict())
    if fits:
        check_trainable(model, [size, size], 1, batch)
    else:
        words = rf"cannot train on 1-channel {size}x{size} images in batches of {batch}: .* larger"
        with pytest.raises(ModelError, match=words):
            check_trainable(model, [size, size], 1, batch)
    assert not model.training
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["bn_cnn", "resnet18", "densenet121"])
def test_group_norm_replaces_every_batchnorm(name):
    size = {"in_channels": 1, "num_classes": 3, "image_size": [32, 32], "seed": 0}
    model = build_model(name, norm="group", **size)
    kinds = {type(m) for m in model.modules()}
    assert nn.GroupNorm in kinds and not kinds & {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    assert not list(model.buffers()), "nothing is remembered of the images"
    images = torch.rand(2, 1, 32, 32)
    together = model(images)
    assert together.shape == (2, 3)
    torch.testing.assert_close(together[:1], model(images[:1]), rtol=1e-3, atol=1e-4)


def test_a_norm_that_does_not_exist_is_told():
    size = {"in_channels": 1, "num_classes": 2, "image_size": [32, 32]}
    assert not any(
        isinstance(m, nn.GroupNorm | nn.BatchNorm2d)
        for m in build_model("bn_cnn", norm="none", **size).modules()
    )
    for name in ("bn_cnn", "resnet18"):
        with pytest.raises(ModelError, match="layer"):
            build_model(name, norm="layer", **size)
