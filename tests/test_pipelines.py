"""Saved Albumentations pipelines: read as Albumentations itself reads them, and refused where it only warns or crashes."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask PyPI for a newer version
import albumentations as A

from sightline import pipelines
from sightline.exceptions import RecipeError


def item(name: str, **arguments: Any) -> dict[str, Any]:
    return {"__class_fullname__": name, "p": 1, **arguments}


def saved(*transforms: Any, version: str = "2.0.8", **more: Any) -> dict[str, Any]:
    compose = {"__class_fullname__": "Compose", "transforms": list(transforms), **more}
    return {"__version__": version, "transform": compose}


def run(compose: Any) -> np.ndarray:
    compose.set_random_state(np.random.default_rng(3), random.Random(3))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    result: np.ndarray = compose(image=image)["image"]
    return result


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_pipeline_is_read_as_albumentations_saves_it(tmp_path: Path, suffix: Any) -> None:
    compose = A.Compose([A.OneOf([A.Blur(), A.GaussNoise()], p=0.5), A.Pad((1, 2)), A.HorizontalFlip()], seed=3)
    path = tmp_path / f"pipeline.{suffix}"
    A.save(compose, path, data_format=suffix)
    expected = json.loads(json.dumps(A.to_dict(compose), default=lambda enum: enum.value))["transform"]["transforms"]
    for pipeline in (compose, A.to_dict(compose), path, str(path)):
        assert pipelines.read(pipeline) == expected
    assert pipelines.read(A.Blur()) == pipelines.read(A.Compose([A.Blur()]))


def test_defaults_that_were_left_out_are_written() -> None:
    (blur,) = pipelines.read(saved(item("Blur")))
    assert blur == {"__class_fullname__": "Blur", "p": 1.0, "blur_limit": [3, 7]}


def test_what_was_read_builds_the_same_pipeline() -> None:
    compose = A.Compose([A.RandomBrightnessContrast(p=1), A.GaussNoise(p=1)])
    built = pipelines.build(pipelines.spec(pipelines.read(compose)))
    np.testing.assert_array_equal(run(built), run(compose))


def test_a_pipeline_that_runs_only_sometimes_is_one_item() -> None:
    (whole,) = pipelines.read(A.Compose([A.Blur(), A.HorizontalFlip()], p=0.3))
    assert (whole["__class_fullname__"], whole["p"], len(whole["transforms"])) == ("Compose", 0.3, 2)


def test_what_a_pipeline_says_of_boxes_is_accepted() -> None:
    boxes = A.Compose([A.HorizontalFlip()], bbox_params=A.BboxParams("coco"))
    assert pipelines.read(boxes) == pipelines.read(A.Compose([A.HorizontalFlip()]))


def test_a_dropout_of_version_1_is_put_in_the_words_of_2() -> None:
    old = {"always_apply": True, "max_holes": 3, "min_holes": 2, "max_height": 8, "max_width": 9, "min_width": 4, "fill_value": 7}
    (new,) = pipelines.read(saved(item("CoarseDropout", **{**old, "p": 0.5}), version="1.3.1"))
    assert new == pipelines.read(
        A.CoarseDropout(num_holes_range=(2, 3), hole_height_range=(8, 8), hole_width_range=(4, 9), fill=7, p=1)
    )[0] | {"hole_height_range": [8, 8], "hole_width_range": [4, 9]}


def test_a_turn_of_version_1_reflects_where_it_does_not_say() -> None:
    (old,) = pipelines.read(saved(item("Rotate", limit=[-5, 5]), version="1.3.1"))
    (new,) = pipelines.read(saved(item("Rotate", limit=[-5, 5])))
    assert (old["border_mode"], new["border_mode"]) == (pipelines.BORDER_REFLECT_101, pipelines.BORDER_CONSTANT)


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (saved(item("HorizontalFlp")), r"did you mean 'HorizontalFlip'\?"),
        (saved(item("Horizontal\nFlip")), r"no transform 'Horizontal\\nFlip'"),
        (saved(item("Blur", blur_limt=3)), r"Blur: unknown argument 'blur_limt': did you mean 'blur_limit'\?"),
        (saved(item("Blur", **{"a\nb": 3})), r"Blur: unknown argument 'a\\nb'"),
        (saved(item("Blur", limit=3), version="1.3.0"), "unknown argument 'limit'"),
        (saved(item("CoarseDropout", max_holes=1)), "unknown argument 'max_holes'"),
        (saved(item("Blur", self=3)), "unknown argument 'self'"),
        (saved(item("OneOf", transforms=[], kwargs=3)), "unknown argument 'kwargs'"),
        (saved(item("CoarseDropout", fill=[])), "CoarseDropout: 'fill' is empty"),
        (saved(item("CoarseDropout", fill=float("nan"))), "not JSON compliant"),
        (saved(item("OneOf", transforms=[{"__class_fullname__": "Blur"}])), "'p' is missing"),
        (saved(item("OneOf", transforms=[item("Blur", p=0)])), "refuses the pipeline: float division by zero"),
        (saved(item("OneOf")), "OneOf: 'transforms' is None; it must be a list"),
        (saved(item("HorizontalFlip", p=2)), "HorizontalFlip: p is 2; it must be a number between 0 and 1"),
        (saved(item("OneOf", p="x", transforms=[])), "OneOf: p is 'x'"),
        (saved(item("RandomCrop")), "Albumentations refuses the pipeline"),
        (saved("Blur"), "'Blur' is no transform"),
        (saved(p="often"), "Compose: p is 'often'; it must be a number between 0 and 1"),
        (saved(p=None), "Compose: p is None"),
        (saved(bbox=3), r"Compose: unknown argument 'bbox': did you mean 'bbox_params'\?"),
        (saved(bbox_params=3), "refuses the pipeline: unknown format of bbox_params"),
        (saved(additional_targets=3), "refuses the pipeline: 'int' object has no attribute 'items'"),
        (saved(transforms=None), "Compose: 'transforms' is None; it must be a list of transforms"),
        (saved(transforms={}), "Compose: 'transforms' is {}; it must be a list of transforms"),
        ({"transform": {"__class_fullname__": "Compose"}}, "Compose: 'transforms' is None; it must be a list"),
        ({"transform": {"__class_fullname__": ["Compose"]}}, "is no transform"),
        ({"transform": {}}, "{} is no transform"),
        ({"transform": {1j: 2}}, "can't be saved as JSON"),
        ({"transforms": []}, "dict is no pipeline"),
        (A.Compose([A.Lambda(image=len)]), "can't be saved"),
        (A.Compose, "can't be saved"),
        (A.FDA(), "can't be saved"),
        (3, "int is no pipeline"),
        ("no/such/file.json", "cannot read the pipeline"),
    ],
)
def test_a_pipeline_that_cannot_be_honoured_is_refused(pipeline: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        pipelines.read(pipeline)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["broken.json", "broken.yaml"])
def test_a_damaged_pipeline_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{]")
    with pytest.raises(RecipeError, match=rf"{name} is damaged") as caught:
        pipelines.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_argument_that_albumentations_only_warned_of_is_refused() -> None:
    with pytest.warns(UserWarning, match="max_holes"):
        compose = A.Compose([A.OneOf([A.CoarseDropout(max_holes=1)])])
    with pytest.raises(RecipeError, match="CoarseDropout: unknown argument 'max_holes'"):
        pipelines.read(compose)


def test_a_missing_albumentations_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(RecipeError, match=r"pip install 'sightline\[albumentations\]'"):
        pipelines.read({"transform": {}})
