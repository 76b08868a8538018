"""Classification metrics against hand computations and pair counting."""

import itertools

import pytest
import torch
from torch import nn

from gradward.metrics import classification_metrics, evaluate
from gradward.training import TrainingAborted

torch.set_num_threads(1)


def test_binary_by_hand():
    # Predictions 0 1 1 0 against 0 0 1 1; class-1 margins -2 1 3 -1: 3 of 4 pairs in order.
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0], [9.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, 0])
    metrics = classification_metrics(logits, labels)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Positives at 3 and -1, negatives at -2, 1, -9: five of six pairs are in order.
    assert metrics["auc"] == pytest.approx(5 / 6)


def test_ties_count_half_and_saturated_logits_do_not_tie():
    labels = torch.tensor([0, 1, 0, 1])
    assert classification_metrics(torch.zeros(4, 2), labels)["auc"] == 0.5
    far = torch.tensor([[0.0, 100.0], [0.0, 200.0], [0.0, 150.0], [0.0, 300.0]])
    assert classification_metrics(far, labels)["auc"] == 1.0


def test_multiclass_is_one_against_the_rest_over_the_classes_present():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 4, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)  # class 3 is absent
    probabilities = logits.double().softmax(1)
    areas = []
    for label in range(3):
        positive = probabilities[labels == label, label].tolist()
        negative = probabilities[labels != label, label].tolist()
        pairs = list(itertools.product(positive, negative))
        areas.append(sum(a > b for a, b in pairs) / len(pairs))
    metrics = classification_metrics(logits, labels)
    assert metrics["auc"] == pytest.approx(sum(areas) / 3)
    predicted = logits.argmax(1)
    recalls = [(predicted[labels == k] == k).double().mean().item() for k in range(3)]
    assert metrics["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)


def test_one_class_has_no_auc():
    assert set(classification_metrics(torch.eye(2), torch.zeros(2, dtype=torch.int64))) == {
        "accuracy",
        "balanced_accuracy",
    }


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ValueError),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), ValueError),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), ValueError),
        (torch.zeros(3, 2), torch.zeros(3), ValueError),
        (torch.zeros(1, 2), torch.tensor([2]), ValueError),
        (torch.tensor([[torch.nan, 0.0]]), torch.tensor([0]), FloatingPointError),
    ],
)
def test_errors(logits, labels, error):
    with pytest.raises(error):
        classification_metrics(logits, labels)


def test_evaluate_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2))
    model[1].eval()  # a mixed mode, as frozen layers have
    images, labels = torch.rand(10, 1, 4, 4), torch.arange(10) % 2
    before = {key: value.clone() for key, value in model.state_dict().items()}
    metrics = evaluate(model, images, labels, batch_size=3)
    assert [layer.training for layer in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert metrics == classification_metrics(model.eval()(images), labels)


def test_evaluate_stops_and_refuses_nothing_to_do():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    images, labels = torch.rand(9, 1, 4, 4), torch.arange(9) % 2
    answers = iter([False, True])
    with pytest.raises(TrainingAborted):
        evaluate(model, images, labels, batch_size=3, aborted=lambda: next(answers))
    assert model.training
    with pytest.raises(ValueError, match="no images"):
        evaluate(model, images[:0], labels[:0])
