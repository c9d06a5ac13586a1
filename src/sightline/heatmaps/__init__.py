"""Where the model looked: heatmaps, signed and at layer resolution; drawing is apart from computing."""

from .drawing import COLORMAPS, no_evidence, overlay, upsample
from .engine import Heatmaps, Maps
from .sweep import explain, explain_batches

__all__ = ["COLORMAPS", "Heatmaps", "Maps", "explain", "explain_batches", "no_evidence", "overlay", "upsample"]
