"""SSIM against scikit-image, PSNR and MSE in closed form, recovery, Hungarian matching."""

import itertools

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import structural_similarity

from gradward.metrics import match, mse, psnr, rdlv, recovered_fraction, ssim, ssim_matrix
from gradward.metrics import similarity as module

torch.set_num_threads(1)


def patches(n, size=32, step=48):
    """Real colour pictures: patches of scikit-image's histology picture."""
    picture = torch.from_numpy(data.immunohistochemistry()).permute(2, 0, 1) / 255
    per_row = (picture.shape[2] - size) // step + 1
    corners = [(i // per_row * step, i % per_row * step) for i in range(n)]
    return torch.stack([picture[:, y : y + size, x : x + size] for y, x in corners])


def noisy(images, amount, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (images + amount * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("size", [16, 28, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("amount", [0.0, 0.02, 0.3])
def test_ssim_is_scikit_images(size, channels, amount):
    x = patches(4, size)[:, :channels]
    y = noisy(x, amount)
    expected = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x.double(), y.double(), strict=True)
    ]
    assert np.allclose(ssim(x, y).numpy(), expected, atol=2e-5)


def test_ssim_of_small_pictures_and_identity():
    x = patches(3, 16)
    for size in (3, 8, 10, 11, 16):
        part = x[..., :size, :]
        assert torch.allclose(ssim(part, part), torch.ones(3), atol=1e-6)
        assert (ssim(part, 1 - part) < 0.5).all()
    with pytest.raises(ValueError, match="at least 3 pixels"):
        ssim(x[..., :2, :], x[..., :2, :])


def test_mse_and_psnr_in_closed_form():
    x = torch.full((3, 1, 16, 16), 0.25)
    y = x + torch.tensor([0.0, 0.1, 0.5]).reshape(3, 1, 1, 1)
    assert torch.allclose(mse(x, y).float(), torch.tensor([0.0, 0.01, 0.25]))
    assert torch.allclose(psnr(x, y).float(), torch.tensor([100.0, 20.0, 6.0206]))


@pytest.mark.parametrize("function", [mse, psnr, ssim, ssim_matrix])
def test_shapes_and_range_are_checked(function):
    good = torch.rand(2, 1, 16, 16)
    for bad in (
        good[0],
        good[..., :15],
        (good * 255).to(torch.uint8),
        good + 1,
        good - 1,
        good.clone().index_fill_(3, torch.tensor([4]), torch.nan),
    ):
        with pytest.raises(ValueError, match=r"shape|floating|\[0, 1\]"):
            function(good, bad)


def test_ssim_matrix_in_chunks(monkeypatch):
    a, b = patches(5), noisy(patches(3), 0.1)
    whole = ssim_matrix(a, b)
    monkeypatch.setattr(module, "_CHUNK", 4 * a[0].numel())
    assert torch.allclose(ssim_matrix(a, b), whole)
    assert whole.shape == (5, 3)
    assert torch.allclose(whole[2, 1:2], ssim(a[2:3], b[1:2]))
    assert ssim_matrix(a[:0], b).shape == (0, 3)


def test_recovery():
    s, p = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.2]), torch.tensor([0.5, 0.5, 0.5, 1.0, -0.1])
    assert np.allclose(rdlv(s, p), [1, 0, -0.5, 0, np.nan], equal_nan=True)
    assert np.allclose(recovered_fraction(s, p), [1, 0, -0.5, np.nan, 0.3 / 1.1], equal_nan=True)
    with pytest.raises(ValueError, match="shape"):
        rdlv(s, p[:1])


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 6), (6, 3), (1, 4)])
def test_match_is_the_best_of_all_assignments(n, m):
    generator = torch.Generator().manual_seed(n)
    pictures = patches(6)
    order = torch.randperm(6, generator=generator)[:n]
    reconstructions, truths = noisy(pictures[order], 0.25), pictures[:m]
    rows, columns = match(reconstructions, truths)
    similarity = ssim_matrix(reconstructions, truths)
    if n <= m:
        sums = [similarity[range(n), c].sum() for c in itertools.permutations(range(m), n)]
    else:
        sums = [similarity[r, range(m)].sum() for r in itertools.permutations(range(n), m)]
    assert len(rows) == len(columns) == min(n, m)
    assert similarity[rows, columns].sum().item() == pytest.approx(max(sums).item(), abs=1e-5)
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_match_undoes_a_permutation():
    order = torch.tensor([3, 0, 4, 1, 2])
    rows, columns = match(noisy(patches(5)[order], 0.1), patches(5))
    assert torch.equal(rows, torch.arange(5))
    assert torch.equal(columns, order)
