"""Independent random streams from one seed, the same on every machine."""

from __future__ import annotations

import hashlib
import secrets

import torch

# torch.Generator keeps 32 bits of a seed: who tries them all subtracts what was drawn. These are
# the words of the Mersenne Twister in the state of a CPU generator, 624 numbers of 8 bytes each.
_TWISTER = slice(24, 24 + 8 * 624)


def derive_seed(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed of its own for each purpose (site, round, ...)."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def secret_generator() -> torch.Generator:
    """Return a CPU generator that nobody can repeat, with all its state from the system."""
    generator = torch.Generator()
    generator.seed()
    state = generator.get_state()
    words = [secrets.randbits(32) for _ in range(624)]
    state[_TWISTER] = torch.tensor(words, dtype=torch.int64).view(torch.uint8)
    generator.set_state(state)
    return generator
