"""What a plan of training says of its data, and whether they are labelled as a network needs them."""

from typing import Any

from adm_bench.errors import InputError
from adm_bench.images.dataset import Dataset, Outlined


def training_record(dataset: Dataset) -> dict[str, Any]:
    """What decides the images and labels that are trained on, as plain data: the same wherever they are copied to.

    Encoded images are known by names, sizes, labels and the bytes of a few, without reading all of them; arrays and
    plug-ins by their digest.
    """
    if isinstance(dataset, Outlined):
        known = {"labels": dataset.labels_from, "outline": dataset.outline()}
    else:
        known = {"labels": "the plug-in's", "digest": dataset.digest()}
    skipped = dataset.preparation.get("skipped")
    counted = {"images": len(dataset), "image_size": dataset.image_size, "classes": dataset.num_classes}
    return {**counted, **known, **({"skipped": sorted(skipped)} if skipped else {})}


def require_classes(dataset: Dataset, num_classes: int | None) -> None:
    """InputError unless a network that knows so many classes, or None, can be trained on the labels there are."""
    if num_classes is None:
        return
    if dataset.num_classes is None:
        raise InputError(
            f"data set {dataset.name} has no labels, but model.num_classes is {num_classes}; put each class into a "
            "folder of its own, give --labels prefix where names are CLASS_ANYTHING, or train without: "
            "--set model.num_classes=none"
        )
    if dataset.num_classes > num_classes:
        raise InputError(
            f"data set {dataset.name} has {dataset.num_classes} classes, but model.num_classes is {num_classes}; give "
            f"--set model.num_classes={dataset.num_classes}, or other labels (--labels)"
        )
