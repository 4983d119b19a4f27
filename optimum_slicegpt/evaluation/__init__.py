"""Measures what a model predicts, how fast it is, and how much energy its stream holds along each axis."""
