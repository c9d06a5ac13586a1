"""Where the model looked: heatmaps, signed and at layer resolution; drawing is apart from computing."""

from .attributions import captum_method
from .drawing import COLORMAPS, no_evidence, overlay, upsample
from .engine import Heatmaps, Maps
from .methods import METHODS
from .sweep import explain, explain_files, explain_images
from .targets import Margin

__all__ = [
    "COLORMAPS",
    "METHODS",
    "Heatmaps",
    "Maps",
    "Margin",
    "captum_method",
    "explain",
    "explain_files",
    "explain_images",
    "no_evidence",
    "overlay",
    "upsample",
]
