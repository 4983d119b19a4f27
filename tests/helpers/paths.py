"""Where this repository and the helpers of its tests are."""

from pathlib import Path


HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
