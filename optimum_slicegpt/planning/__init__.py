"""Widths, numbers of neurons and sizes of a sliced model, computed before any weight is read."""
