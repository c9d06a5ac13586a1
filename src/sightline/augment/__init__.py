"""Augmentation policies: value objects that transform whole batches on the device.

A transform is a frozen dataclass, called with a uint8 batch (N, C, H, W) and a `torch.Generator` on the CPU, from
which it draws one set of parameters an image; it returns a new uint8 batch of the same shape on the batch's device.
Random numbers are always drawn on the CPU, so that a policy does the same to the same images on every device. Its
`apply` takes the parameters instead of drawing them: there a magnitude can be forced.

A pipeline written for Albumentations comes in by `from_albumentations`: what Sightline knows runs on whole batches, the
rest image by image through Albumentations itself (`PerSample`). `to_albumentations` is the way out; what Albumentations
has no equivalent of goes along as it is, image by image (`imagewise`).
"""

from .base import Transform, is_number, is_whole
from .colour import ColorJitter, Grey
from .erasing import CoarseDropout, RandomErasing
from .exchange import from_albumentations, to_albumentations
from .geometry import HorizontalFlip, RandomCrop, Rotate, Scale, Shift, VerticalFlip
from .mixing import CutMix, MixUp
from .persample import PerSample
from .policy import augment, bind, from_dicts, look, rates, to_dicts
from .quality import Blur, Jpeg, Noise
from .remedies import Backdrop, Erase, Frame, Recombine, Restyle, Stamp, Tint
from .trivial import TrivialAugmentWide

__all__ = [
    "Backdrop",
    "Blur",
    "CoarseDropout",
    "ColorJitter",
    "CutMix",
    "Erase",
    "Frame",
    "Grey",
    "HorizontalFlip",
    "Jpeg",
    "MixUp",
    "Noise",
    "PerSample",
    "RandomCrop",
    "RandomErasing",
    "Recombine",
    "Restyle",
    "Rotate",
    "Scale",
    "Shift",
    "Stamp",
    "Tint",
    "Transform",
    "TrivialAugmentWide",
    "VerticalFlip",
    "augment",
    "bind",
    "from_albumentations",
    "from_dicts",
    "is_number",
    "is_whole",
    "look",
    "rates",
    "to_albumentations",
    "to_dicts",
]
