"""Where this repository and the helpers of its tests are."""

from pathlib import Path


HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]

TRAVELLING = ("configuration_sliced", "families", "family", "heads", "layer_sliced", "modeling_sliced", "weights")
TRAVELLING += ("families_experts", "families_hybrid", "families_layer_norm", "families_post_norm", "families_rms_norm")
TRAVELLING = {f"{name}.py" for name in TRAVELLING}
"""Files of `modeling/` that travel with checkpoints."""
