"""The hook that `from_pretrained(..., quantization_config=SliceGPTConfig(...))` calls."""

from transformers.quantizers import HfQuantizer

from .modeling.families import family_of
from .quantizer import SliceGPTQuantizer


class SliceGPTHfQuantizer(HfQuantizer):
    """Slices a model as soon as its weights are loaded, and leaves no trace of quantization on it."""

    requires_calibration = False

    def validate_environment(self, *args, device_map=None, **kwargs):
        """
        Raises:
            ValueError: the device map spreads the model, which slicing would undo.
        """
        if device_map in ("auto", "balanced", "balanced_low_0", "sequential") or (
            isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1
        ):
            raise ValueError(
                f"device_map={device_map!r} may spread the model over devices before it is sliced; load it on one "
                "device, slice, save, and load the sliced checkpoint with this device_map. "
                "SliceGPTConfig(device='cuda') slices a model in host memory layer by layer on the GPU."
            )

    def _process_model_before_weight_loading(self, model, **kwargs):
        family_of(model.config)

    def _process_model_after_weight_loading(self, model, **kwargs):
        self.remove_quantization_config(model)
        return SliceGPTQuantizer(self.quantization_config).quantize_model(model)

    def is_serializable(self):
        return False

    @property
    def is_trainable(self):
        return False
