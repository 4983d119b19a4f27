"""Metrics of `evaluate`, which loads them from their paths and copies them to its cache: no network is needed."""

from pathlib import Path


PERPLEXITY = str(Path(__file__).parent / "perplexity")
"""`evaluate.load(PERPLEXITY)` is a metric that knows sliced models. Its arguments are in its `inputs_description`."""
