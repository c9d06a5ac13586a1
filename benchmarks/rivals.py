"""What simpler rules, and other tools, would say of the runs that PlantBench diagnoses: each returns the causes that it names.

largest_drop       a robustness report: the transform with the largest drop on average, whatever a sham does
centre_of_mass     heatmaps alone: a class whose heat lies elsewhere than that of the others has a mark there
heatmap_clusters   SpRAy (Lapuschkin et al. 2019, https://doi.org/10.1038/s41467-019-08987-4): spectral clusters of heatmaps, as
                   many as the eigengap says; a mark by the thresholds of ShortKit-ML 0.1.0: a cluster that is small and of one
                   class, heat that is narrow in one, or clusters that are clear and not the classes
image_properties   cleanlab 2.9's check for spurious correlations: can a naive Bayes tell the class from one property of an image?

The last two need scikit-learn and cleanlab: pip install 'sightline[bench]'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

AWAY = 1 / 8  # of the side, from the other classes' centre
SMALL, PURE, NARROW, APART, MIXED = 0.05, 0.8, 0.6, 0.3, 0.6  # ShortKit's thresholds
FEWEST_CLUSTERS, MOST_CLUSTERS = 2, 10
ERROR = 0.3  # of cleanlab: below it a property is reported
PROPERTY_CAUSES = {"brightness": "lighting", "colour": "tint_frame", "blurriness": "texture", "information": "background"}


def largest_drop(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the cause of the curve with the largest effect."""
    curves = [
        f for f in findings if f["label"] is None and f["probe"] != "field" and f["cause"] not in ("label_errors", "ambiguous")
    ]
    return [max(curves, key=lambda f: f["effect"])["cause"]] if curves else []


def centre_of_mass(maps: NDArray[np.float32], predicted: NDArray[np.int64]) -> list[str]:
    """maps: (N, h, w), of the predicted classes (N,). Only what speaks for the class has weight."""
    weight = np.maximum(maps, 0).astype(np.float64)
    total = weight.sum((1, 2))
    kept, (height, width) = total > 0, maps.shape[1:]
    rows = (weight.sum(2) @ (np.arange(height) + 0.5) / height)[kept] / total[kept]
    columns = (weight.sum(1) @ (np.arange(width) + 0.5) / width)[kept] / total[kept]
    centres, classes = np.stack([rows, columns], 1), predicted[kept]
    for label in np.unique(classes):
        own = classes == label
        if own.all() or np.linalg.norm(centres[own].mean(0) - centres[~own].mean(0)) > AWAY:
            return ["mark"]
    return []


def heatmap_clusters(maps: NDArray[np.float32], labels: NDArray[np.int64]) -> list[str]:
    """maps: (N, h, w), of the predicted classes; labels: (N,), the true ones."""
    from sklearn.cluster import SpectralClustering
    from sklearn.metrics import silhouette_score
    from sklearn.metrics.pairwise import cosine_similarity

    large = F.interpolate(torch.from_numpy(maps)[:, None], (32, 32), mode="bilinear", align_corners=True)[:, 0].flatten(1)
    low = large.amin(1, keepdim=True)
    features = ((large - low) / (large.amax(1, keepdim=True) - low + 1e-8)).numpy().astype(np.float64)
    affinity = cosine_similarity(features)
    count = eigengap(affinity)
    cluster = SpectralClustering(count, affinity="precomputed", assign_labels="kmeans", random_state=0).fit_predict(affinity)
    groups = [np.flatnonzero(cluster == k) for k in np.unique(cluster)]
    purity = [float(np.bincount(labels[rows]).max() / len(rows)) for rows in groups]
    shares = features / (features.sum(1, keepdims=True) + 1e-8)
    focus = 1 + (shares * np.log(shares + 1e-8)).sum(1) / np.log(features.shape[1])
    small = any(len(rows) < SMALL * len(labels) and pure >= PURE for rows, pure in zip(groups, purity, strict=True))
    narrow = max(float(focus[rows].mean()) for rows in groups) >= NARROW and max(purity) >= PURE
    apart = len(groups) > 1 and silhouette_score(features, cluster, metric="cosine") >= APART and np.mean(purity) < MIXED
    return ["mark"] if small or narrow or apart else []


def eigengap(affinity: NDArray[np.float64]) -> int:
    """The number of clusters after which the eigenvalues of the normalised Laplacian of `affinity` (N, N) jump the most."""
    scale = 1 / np.sqrt(np.maximum(affinity.sum(1), 1e-8))
    values = np.linalg.eigvalsh(np.eye(len(affinity)) - scale[:, None] * affinity * scale)
    gaps = np.diff(values[: MOST_CLUSTERS + 2])
    first = FEWEST_CLUSTERS - 1
    return int(gaps[first:].argmax()) + first + 1


def image_properties(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[str]:
    """images: (N, H, W, 3)."""
    import pandas as pd
    from cleanlab.datalab.internal.spurious_correlation import SpuriousCorrelations

    found = SpuriousCorrelations(pd.DataFrame(properties(images)), labels).calculate_correlations()
    named = found["property"][found["score"] < ERROR]
    return sorted({PROPERTY_CAUSES[name] for name in named})


def properties(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """What cleanlab's image checks are about, of images (N, H, W, 3): light, colour, sharpness, entropy of the grey levels."""
    grey = images.mean(3)
    around = (grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]) / 4
    counts = np.stack([np.bincount(image.astype(np.uint8).ravel(), minlength=256) for image in grey]) / grey[0].size
    return {
        "brightness": grey.mean((1, 2)),
        "colour": (images.max(3).astype(np.int64) - images.min(3)).mean((1, 2)),
        "blurriness": (grey[:, 1:-1, 1:-1] - around).var((1, 2)),
        "information": -(counts * np.log2(counts + 1e-12)).sum(1),
    }
