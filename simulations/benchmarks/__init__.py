"""One module per benchmark, each with a ``BENCHMARK``; a new one is one new file here and nothing else."""
