"""What the modules of data sets share: how bad lines and unlike counts are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import ConsiliumError
from simulations.datasets.files import differs, refuse


def test_the_first_bad_line_is_named_as_its_file_counts_it() -> None:
    said = "is 'x'", "Get it again."
    rows = pd.DataFrame({"a": list("yyxyx")})
    for bad, first, line in (
        (rows["a"] == "x", 2, 4),  # below a header
        (rows["a"].iloc[1:].sort_values() == "x", 2, 4),  # some rows in another order keep their lines
        ((rows["a"] == "x").to_numpy(), 1, 3),  # no header
    ):
        with pytest.raises(ConsiliumError, match=rf"^a\.csv, line {line}: is 'x' \(2 rows\)\. Get it again\.$"):
            refuse(bad, Path("a.csv"), *said, first=first)
    with pytest.raises(ConsiliumError, match=r"line 3: is 'x'\. Get"):
        refuse(np.array([False, False, True]), Path("a.csv"), *said)
    refuse(rows["a"] == "z", Path("a.csv"), *said)


def test_counts_are_told_where_they_are_not_the_reported_ones() -> None:
    assert differs("Clips", iter([1000, 2]), (1000, 2), "the list") == ""
    assert differs("Clips", [1000, 3], (1000, 2), "the list") == "Clips: 1,000 / 3; the list has 1,000 / 2."
