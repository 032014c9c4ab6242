"""Public data sets: one module each, reading the official file layout."""
