"""Names of everything that can be plugged in: each a row here or an entry point, imported on first use.

Another package adds its own through the entry-point groups `adm_bench.generators`, `adm_bench.metrics`,
`adm_bench.features` and `adm_bench.datasets`.
"""

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from adm_bench.errors import InputError
from generators.configuration import unknown_name

OPEN_GROUPS = ("generators", "metrics", "features", "datasets")
BUILT_IN: dict[str, dict[str, str]] = {
    "generators": {
        "adm": "generators.adm.generator:Adm",
        "gaussian": "generators.gaussian:Gaussian",
        "memorizer": "generators.memorizer:Memorizer",
        "noise": "generators.noise:Noise",
        "upsampler": "generators.adm.upsampler:AdmUpsampler",
    },
    "trainers": {
        "adm": "generators.adm.trainer:AdmTrainer",
        "classifier": "generators.adm.trainer:ClassifierTrainer",
        "upsampler": "generators.adm.trainer:UpsamplerTrainer",
    },
    "metrics": {
        "fid": "metrics.frechet:FID",
        "sfid": "metrics.frechet:SFID",
        "is": "metrics.inception_score:INCEPTION_SCORE",
        "is_shuffled": "metrics.inception_score:SHUFFLED_INCEPTION_SCORE",
        "precision": "metrics.manifold_metrics:PRECISION",
        "recall": "metrics.manifold_metrics:RECALL",
        "f_score": "metrics.manifold_metrics:F_SCORE",
        "density": "metrics.manifold_metrics:DENSITY",
        "coverage": "metrics.manifold_metrics:COVERAGE",
        "copied": "metrics.copies:COPIED",
        "kid": "metrics.kernel:KID",
        "kid_subsets": "metrics.kernel:KID_SUBSETS",
        "fid_infinity": "metrics.fid_infinity:FID_INFINITY",
    },
    "features": {
        "torchscript": "metrics.features.torchscript:TorchScriptFeatures",
        "clean": "metrics.features.inception:CleanFeatures",
        "digits": "metrics.features.digits:DigitsFeatures",
        "dinov2": "metrics.features.dinov2:DinoFeatures",
        "inception": "metrics.features.inception:InceptionFeatures",
    },
    "datasets": {"digits": "adm_bench.images.digits:open_digits"},
}


@cache
def rows(group: str) -> dict[str, str]:
    """Every name of a group with its `module:attribute`; InputError where a plug-in takes a taken name."""
    table = dict(BUILT_IN[group])
    for entry in entry_points(group=f"adm_bench.{group}") if group in OPEN_GROUPS else ():
        if entry.name in table and table[entry.name] != entry.value:
            raise InputError(f"{group} {entry.name!r} is registered twice: {table[entry.name]} and {entry.value}")
        table[entry.name] = entry.value
    return dict(sorted(table.items()))


def load(group: str, name: str) -> Any:
    """The object that a name stands for; InputError, with the nearest name, where there is none."""
    table = rows(group)
    if name not in table:
        raise InputError(unknown_name(group.removesuffix("s"), name, table))
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in BUILT_IN[group]:
            raise
        raise InputError(f"{group.removesuffix('s')} {name!r} is a plug-in that cannot be imported: {error}") from error


def describe(group: str) -> dict[str, str]:
    """Each name of a group with its `description`, or the first line of its docstring."""
    described = {}
    for name in rows(group):
        try:
            found = load(group, name)
        except InputError as error:
            described[name] = str(error)
            continue
        text = getattr(found, "description", None) or found.__doc__ or ""
        described[name] = text.strip().splitlines()[0] if text.strip() else ""
    return described
