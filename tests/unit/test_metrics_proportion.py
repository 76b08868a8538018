"""Bounds of a share, beside scipy's."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from gradward.metrics import wilson_interval


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (3, 300), (13, 300), (150, 300), (20, 20)])
def test_wilsons_interval_is_scipys(hits: int, trials: int, confidence: float) -> None:
    # scipy's is two-sided: what lies outside is shared by both sides.
    theirs = binomtest(hits, trials).proportion_ci(2 * confidence - 1, method="wilson")
    ours = wilson_interval(hits / trials, trials, confidence)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("wrong", [(1.2, 5), (float("nan"), 5), (0.5, 0), (0.5, 5, 1.0)])
def test_what_is_no_share_is_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="are needed"):
        wilson_interval(*wrong)
