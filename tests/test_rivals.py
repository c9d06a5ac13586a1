"""What PlantBench compares the diagnosis with: each rival on data where it must speak, and where it must not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import rivals


def heat(places: list[tuple[int, int]], n: int = 40) -> np.ndarray:
    """Maps (N, 7, 7) that are hot at the place of their class, and the classes."""
    random = np.random.default_rng(0)
    maps = random.random((n * len(places), 7, 7), np.float32) / 10
    for label, (row, column) in enumerate(places):
        maps[label * n : (label + 1) * n, row, column] += 5
    return maps


def test_a_class_whose_heat_lies_elsewhere_has_a_mark() -> None:
    labels = np.repeat(np.arange(4), 40)
    assert rivals.centre_of_mass(heat([(3, 3), (3, 3), (3, 3), (0, 6)]), labels) == ["mark"]
    assert rivals.centre_of_mass(heat([(3, 3), (3, 3), (3, 3), (3, 3)]), labels) == []


def test_the_largest_drop_is_named_whatever_its_sham() -> None:
    findings = [
        {"probe": "darker", "cause": "lighting", "label": None, "effect": 0.1},
        {"probe": "blur", "cause": "blur_noise", "label": None, "effect": 0.2},
        {"probe": "patch", "cause": "mark", "label": 3, "effect": 0.9},
        {"probe": "field", "cause": "occlusion", "label": None, "effect": 0.8},
    ]
    assert rivals.largest_drop(findings) == ["blur_noise"]


def test_the_eigengap_counts_separate_groups() -> None:
    pytest.importorskip("sklearn")
    affinity = np.kron(np.eye(4), np.ones((10, 10))) + 1e-3
    assert rivals.eigengap(affinity) == 4


def test_a_small_cluster_of_one_class_speaks_and_heat_without_clusters_doesnt() -> None:
    pytest.importorskip("sklearn")
    labels = np.arange(80) % 2
    maps = heat([(3, 3), (3, 3)])
    assert rivals.heatmap_clusters(maps, labels) == []
    maps[[1, 3, 5]] = heat([(0, 0)])[:3]
    assert rivals.heatmap_clusters(maps, labels) == ["mark"]


def test_a_property_that_tells_all_classes_is_reported_and_one_that_tells_one_of_ten_is_not() -> None:
    pytest.importorskip("cleanlab")
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 100)
    images = random.integers(0, 60, (200, 8, 8, 3), np.uint8)
    assert rivals.image_properties(images, labels) == []
    images[labels == 1] += 150
    assert "lighting" in rivals.image_properties(images, labels)
    ten = np.repeat(np.arange(10), 20)
    images = random.integers(0, 60, (200, 8, 8, 3), np.uint8)
    images[ten == 3] += 150
    assert rivals.image_properties(images, ten) == []
