"""Turns names, files, texts and tokens into the token batches that a model reads."""
