"""Noise that is frozen by a secret of the site, so that asking again averages nothing away."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

SECRET_BYTES = 32
SECRET_FILE = "secret"
# 52 random bits and a half: u lies in [2^-53, 1 - 2^-53], both exact, so that no normal is infinite
# (they end at about 8.2).
_BITS = 52


class SecretError(RuntimeError):
    """The site's secret cannot be used; no other one takes its place."""


class FrozenNoise:
    """Standard normal noise and names, keyed by the site's secret.

    The same secret, context and image give the same noise in every epoch, round and job, under
    every file name; to whoever lacks the secret it is fresh. Another context gives independent
    noise. The image is what its float32 pixels say to the bit: a picture that was compressed or
    resized anew is another one.

    Args:
        secret: 32 random bytes, as :func:`new_secret` or :func:`load_secret` give them.

    Raises:
        SecretError: another number of bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise SecretError(f"a site's secret has {SECRET_BYTES} bytes, got {len(secret)}")
        self._secret = bytes(secret)

    def normal(self, context: str, image: Tensor, shape: Sequence[int]) -> Tensor:
        """Return N(0, 1) noise for one image.

        HMAC-SHA256 of context and image under the secret seeds SHAKE-256, whose bits go through
        the inverse of the normal distribution.

        Args:
            context: what the noise is for: the version of the perturber, the purpose, and whatever
                else changes what is added to it. Noise used twice on different values cancels.
            image: float32 of any shape, usually ``(C, H, W)``.
            shape: of the noise.

        Returns:
            ``shape`` float32 on the CPU, each value within about 8.2 of 0.

        Raises:
            TypeError: the image is not float32.
        """
        seed = self._digest("noise", context.encode(), *_content(image))
        count = math.prod(shape)
        stream = hashlib.shake_256(seed).digest(8 * count)
        bits = np.frombuffer(stream, dtype="<u8") >> np.uint64(64 - _BITS)
        normal = ndtri((bits.astype(np.float64) + 0.5) * 2.0**-_BITS)
        return torch.from_numpy(normal.astype(np.float32)).reshape(tuple(shape))

    def key(self, image: Tensor) -> str:
        """Return the name of an image in the ledger, 64 hexadecimal digits.

        Keyed, because a plain hash would tell anyone who holds a picture whether it is there.

        Raises:
            TypeError: the image is not float32.
        """
        return self._digest("key", *_content(image)).hex()

    def _digest(self, purpose: str, *parts: bytes) -> bytes:
        digest = hmac.new(self._secret, digestmod=hashlib.sha256)
        # Lengths in front, so that no two lists of parts run together into the same bytes.
        for part in (b"gradward", purpose.encode(), *parts):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()


def new_secret() -> bytes:
    """Return 32 bytes from the operating system's source of randomness."""
    return secrets.token_bytes(SECRET_BYTES)


def load_secret(folder: Path) -> bytes:
    """Return the secret kept in ``folder``, which is created, once, if there is none.

    Processes that start together get the same one. A damaged secret is never replaced: views made
    under another one would be second views that no ledger could recognise.

    Args:
        folder: the site's private folder; created with mode 0700 if missing.

    Returns:
        32 bytes.

    Raises:
        SecretError: the file has the wrong size, or others than its owner may read it.
        OSError: it cannot be read or written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / SECRET_FILE
    if not file.exists():
        _create(file)
    if file.stat().st_mode & 0o077:
        raise SecretError("others may read this site's secret; make its file mode 0600 (chmod 600)")
    secret = file.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise SecretError(
            f"this site's secret has {len(secret)} bytes instead of {SECRET_BYTES}; restore it: "
            "under another one the ledger would know no image again"
        )
    return secret


def _create(file: Path) -> None:
    """Write a new secret beside ``file`` and link it there, unless another process was faster."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(new_secret())
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def _content(image: Tensor) -> tuple[bytes, bytes]:
    if image.dtype != torch.float32:
        raise TypeError(f"an image must be float32, got {image.dtype}")
    # Adding 0 turns -0.0, which is equal to 0.0 but has other bytes, into it.
    array = (image.detach().cpu() + 0.0).contiguous().numpy()
    return str(tuple(image.shape)).encode(), array.astype("<f4", copy=False).tobytes()
