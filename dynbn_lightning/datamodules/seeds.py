"""Seeds by hashing: what is drawn for an image depends on what the image is, never on the batch it comes in."""

from __future__ import annotations

import hashlib
import random


def hashed_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on all parts and their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def hashed_random(*parts: int | str) -> random.Random:
    """A random number generator seeded by `hashed_seed`."""
    return random.Random(hashed_seed(*parts))
