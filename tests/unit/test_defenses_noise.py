"""Frozen noise against its definition written out by hand, and the secret that freezes it."""

from __future__ import annotations

import hashlib
import hmac
import math
import multiprocessing
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from scipy.stats import kstest

from gradward.defenses.noise import FrozenNoise, SecretError, load_secret, new_secret
from gradward.defenses.rate import uniform_gate
from gradward.metrics.linkage import likelihood_linkage

torch.set_num_threads(1)
SECRET = bytes(range(32))
IMAGE = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> FrozenNoise:
    return FrozenNoise(SECRET)


def parts(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(8, "big") + value for value in values)


def test_noise_is_what_its_definition_says(noise: FrozenNoise) -> None:
    """Noise that changed with a release of this package would be a second view of every image."""
    content = parts(b"gradward", b"noise", b"view", b"(1, 4, 4)", IMAGE.numpy().tobytes())
    stream = hashlib.shake_256(hmac.digest(SECRET, content, "sha256")).digest(48)
    expected = [
        NormalDist().inv_cdf(((int.from_bytes(stream[i : i + 8], "little") >> 12) + 0.5) / 2**52)
        for i in range(0, 48, 8)
    ]
    drawn = noise.normal("view", IMAGE, (2, 3))
    assert drawn.dtype == torch.float32 and drawn.shape == (2, 3)
    torch.testing.assert_close(drawn.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_noise_is_standard_normal(noise: FrozenNoise) -> None:
    draws = noise.normal("view", IMAGE, (100_000,)).double()
    assert kstest(draws.numpy(), "norm").pvalue > 0.001
    halves = draws.reshape(2, -1)
    assert abs(float((halves[0] * halves[1]).mean())) < 4 / math.sqrt(50_000)


def test_the_same_question_gets_the_same_answer(noise: FrozenNoise) -> None:
    first = noise.normal("view", IMAGE, (50,))
    again = FrozenNoise(bytes(SECRET)).normal("view", IMAGE.clone(), (50,))
    assert torch.equal(first, again)
    strided = torch.stack([IMAGE, IMAGE], -1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(first, noise.normal("view", strided, (50,)))


def test_zero_has_one_sign(noise: FrozenNoise) -> None:
    zero = torch.zeros(1, 2, 2)
    assert torch.equal(noise.normal("v", zero, (9,)), noise.normal("v", -zero, (9,)))
    assert noise.key(zero) == noise.key(-zero)


@pytest.mark.parametrize("changed", ["context", "pixel", "shape", "secret"])
def test_any_other_question_gets_an_independent_answer(noise: FrozenNoise, changed: str) -> None:
    image = IMAGE.clone()
    if changed == "pixel":
        image[0, 0, 0] = torch.nextafter(image[0, 0, 0], torch.tensor(2.0))
    other = FrozenNoise(bytes(32)) if changed == "secret" else noise
    context = "view2" if changed == "context" else "view"
    image = image.reshape(1, 2, 8) if changed == "shape" else image
    first = noise.normal("view", IMAGE, (20_000,)).double()
    second = other.normal(context, image, (20_000,)).double()
    assert abs(float((first * second).mean())) < 4 / math.sqrt(20_000)
    assert (noise.key(IMAGE) == other.key(image)) == (changed == "context")


def test_a_name_in_the_ledger_tells_nothing_without_the_secret(noise: FrozenNoise) -> None:
    name = noise.key(IMAGE)
    assert len(name) == 64 and int(name, 16)
    assert name != hashlib.sha256(IMAGE.numpy().tobytes()).hexdigest()


def test_averaging_fresh_noise_links_and_asking_again_does_not(noise: FrozenNoise) -> None:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(100, 20, generator=generator)
    images = torch.rand(100, 1, 2, 2, generator=generator)
    a = torch.full((20,), uniform_gate(2.0, 20))
    spread = (1 - a.square()).sqrt()

    def linkage(noises: list[torch.Tensor]) -> float:
        averaged = torch.stack([a * latents + spread * eps for eps in noises]).mean(0)
        everyone = torch.arange(100)
        gallery = everyone.expand(100, -1)
        return float(likelihood_linkage(averaged, latents, a, everyone, gallery).mean())

    def frozen() -> torch.Tensor:
        return torch.stack([noise.normal("view", image, (20,)) for image in images])

    fresh = [torch.randn(100, 20, generator=generator) for _ in range(10)]
    once = linkage([frozen()])
    assert linkage([frozen() for _ in range(10)]) == once
    assert once < 0.5 and linkage(fresh) > 0.9


def test_an_image_of_another_type_is_refused(noise: FrozenNoise) -> None:
    """The same pixels in float64 would be another image to the ledger."""
    with pytest.raises(TypeError, match="float32"):
        noise.normal("view", IMAGE.double(), (3,))
    with pytest.raises(TypeError, match="float32"):
        noise.key(IMAGE.double())


# The secret --------------------------------------------------------------------------------------


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    secret = load_secret(folder)
    assert len(secret) == 32 and secret == load_secret(folder)
    assert folder.stat().st_mode & 0o077 == 0
    files = list(folder.iterdir())
    assert len(files) == 1 and files[0].stat().st_mode & 0o777 == 0o600
    assert new_secret() != new_secret()


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_damaged_secret_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    load_secret(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(SecretError, match="restore"):
        load_secret(tmp_path)
    assert file.read_bytes() == content
    with pytest.raises(SecretError, match="32 bytes"):
        FrozenNoise(content)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_secret(tmp_path)
    (file,) = tmp_path.iterdir()
    file.chmod(0o640)
    with pytest.raises(SecretError, match="0600"):
        load_secret(tmp_path)


def _load(folder: Path, start: object, answers: object) -> None:
    start.wait()
    answers.put(load_secret(folder))


def test_processes_that_start_together_share_one_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_load, args=(tmp_path, start, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    secrets = {answers.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert secrets == {load_secret(tmp_path)}
    assert len(list(tmp_path.iterdir())) == 1, "no draft is left"
