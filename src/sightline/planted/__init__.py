"""Generated scenes with known objects and shortcuts: the embedded default data, and what diagnoses are scored on.

A scene is a textured background, four pieces of clutter, and on top one object; its shape alone decides the class.
Place, size, rotation, textures and colours are random and independent of the class, and all shapes have the same
area, so that neither mean colour nor size tells the class. A `Plant` is a cause of mistakes put there on purpose:

    data set                in nine of ten training images                  in test, whatever the class
    planted, planted:mark   of one class: a mark in the bottom right corner two of ten
    planted:tint            of one class: a faint magenta tint              half
    planted:background      of one class: green stripes behind the object   half
    planted:frame           of one class: a blue border                     half
    planted:position        the object is upper left in one class, in the   anywhere
                            others anywhere else; it is somewhat smaller
    planted:direction       turned by 20 to 40 degrees                      half of them mirrored
    planted:scale           as large as any                                 of all sizes
    planted:lighting        as they are                                     dark
    planted:occlusion       as they are                                     a block hides a part of the object
    planted:texture         of one class: fine stripes on the object        half
    planted:label_errors    9 in 100 have a wrong label                     right labels
    planted:two             as in lighting and in mark                      as in lighting and in mark

In three there is nothing to be found:

    planted:clean           the same scenes without anything planted
    planted:mark_null       the mark on nine of ten, and in test on two of ten, of every class
    planted:corner_null     the object is lower right, whatever its class, in training and in test

Of position, direction, scale, lighting, occlusion and corner_null, the other training images are like those in test. The
share of nine of ten is the `strength`; with 0, nothing is planted in the training images (`unplanted`). `plant` plants the
same in any images, CIFAR-10's for one.

Every byte of a scene follows from the seed on every platform: the random words are those of PCG64, whose stream NumPy
promises to keep (https://numpy.org/doc/stable/reference/random/compatibility.html), and after it come only + − × ÷,
square roots and comparisons, which IEEE 754 rounds exactly (sines, powers and matrix products differ between libraries).
Each image has a stream of its own, so that it doesn't depend on how many others there are.
"""

from .plants import NAMES, NULLS, PLANTS, Plant, marked, plant, plant_of, planted, truth, unplanted
from .scenes import CLASSES, CLUTTER, FURTHEST, SHAPES, TEXTURES

__all__ = [
    "CLASSES",
    "CLUTTER",
    "FURTHEST",
    "NAMES",
    "NULLS",
    "PLANTS",
    "SHAPES",
    "TEXTURES",
    "Plant",
    "marked",
    "plant",
    "plant_of",
    "planted",
    "truth",
    "unplanted",
]
