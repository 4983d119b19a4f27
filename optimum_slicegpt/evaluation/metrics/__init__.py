"""Holds metrics for `evaluate`, which loads them from their paths and copies them to its cache, without network."""

from pathlib import Path


PERPLEXITY = str(Path(__file__).parent / "perplexity")
"""Path of a perplexity that knows sliced models, for `evaluate.load`. Its `inputs_description` has the arguments."""
