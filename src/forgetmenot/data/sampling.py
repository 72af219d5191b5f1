"""Random streams of test samples: each sample has its own, apart from every training stream."""

import hashlib
import json

import numpy as np

# Training draws from Philox keys (seed, step) with seeds below this value; samples stay above it.
SAMPLE_KEYS = 2**63


def sample_rng(seed: int, *parts: int | str) -> np.random.Generator:
    """Generator of the one sample named by `seed` and `parts`, e.g. (task, length, index).

    Its Philox key is a hash of the name, so a sample does not depend on which others are made;
    the key's first word is at least 2**63, which no training stream (seed, step) uses.
    """
    digest = hashlib.sha256(json.dumps([seed, *parts]).encode()).digest()
    high = int.from_bytes(digest[:8], "little") | SAMPLE_KEYS
    low = int.from_bytes(digest[8:16], "little")
    return np.random.Generator(np.random.Philox(key=np.array([high, low], dtype=np.uint64)))
