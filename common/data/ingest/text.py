"""Free text: words hashed into buckets, so that no vocabulary has to be fitted on patients."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from common.data.ingest.frames import IngestError

WORD = re.compile(r"\w+", re.UNICODE)


def hash_words(text: str, buckets: int, tokens: int) -> NDArray[np.generic]:
    """Returns the hashed words of a text, in order.

    Args:
        text: Free text in any language; case is ignored.
        buckets: Number of hash buckets; bucket 0 pads.
        tokens: Words kept.

    Returns:
        int64 [tokens].

    Raises:
        IngestError: If there is no word.
    """
    from sklearn.utils import murmurhash3_32  # here: a deployed site starts a process per message, and sklearn takes a second

    words = WORD.findall(text.lower())[:tokens]
    if not words:
        raise IngestError("the text holds no word")
    ids = np.zeros(tokens, dtype=np.int64)
    ids[: len(words)] = [murmurhash3_32(w, seed=0, positive=True) % (buckets - 1) + 1 for w in words]
    return ids
