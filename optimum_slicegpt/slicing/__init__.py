"""The algorithm: statistics, axes, fit, write."""
