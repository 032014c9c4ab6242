"""Free text: words hashed into buckets, so that no vocabulary has to be fitted on patients."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.ingest.frames import IngestError

WORD = re.compile(r"\w+", re.UNICODE)


def read_text(path: Path, encoding: str) -> str:
    """Returns a text file.

    Args:
        path: The file.
        encoding: Its encoding, as the manifest names it.

    Raises:
        IngestError: If the file is in another encoding, or cannot be read.
    """
    try:
        content = path.read_bytes()
        text = content.decode(encoding)
        if not (content.isascii() or codecs.lookup(encoding).name.startswith("utf")) and _is_utf8(content):
            raise IngestError(f"the text is in UTF-8, not in encoding '{encoding}'; correct 'encoding' in the manifest")
    except LookupError:
        raise IngestError(f"the manifest's 'encoding' {encoding!r} is none that is known; write utf-8 or latin-1, say") from None
    except UnicodeError:
        text = "\0"
    except OSError as error:
        raise IngestError(f"the text cannot be read ({type(error).__name__}); let the user of this process read it") from None
    if "\0" in text:  # UTF-16 may pass for UTF-8
        remedy = "save it in that encoding, or name its own in the manifest ('encoding')"
        raise IngestError(f"the text is not in encoding '{encoding}'; {remedy}")
    return text


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


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
        raise IngestError("the text holds no word; leave the cell empty where there is no text")
    ids = np.zeros(tokens, dtype=np.int64)
    ids[: len(words)] = [murmurhash3_32(w, seed=0, positive=True) % (buckets - 1) + 1 for w in words]
    return ids
