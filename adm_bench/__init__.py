"""Train, sample, measure and compare image generators.

Outside code imports its names from here; each is imported on first use.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

_HOMES = {
    "Comparison": "metrics.protocol",
    "Dataset": "adm_bench.images.dataset",
    "Extraction": "adm_bench.extraction",
    "EvaluationProtocol": "metrics.protocol",
    "FeatureBatch": "metrics.protocol",
    "Features": "metrics.protocol",
    "Generator": "generators.protocol",
    "Ingredients": "generators.protocol",
    "ImageSet": "adm_bench.images.dataset",
    "InputError": "adm_bench.errors",
    "IteratedImages": "adm_bench.images.iterated",
    "Mean": "generators.protocol",
    "Metric": "metrics.protocol",
    "Parallel": "generators.protocol",
    "Record": "reports.records",
    "Reference": "adm_bench.references",
    "SamplingJob": "adm_bench.sampling",
    "StepReport": "generators.protocol",
    "SuiteRun": "adm_bench.suite",
    "Trainable": "generators.protocol",
    "TrainingBatch": "generators.protocol",
    "TrainingJob": "adm_bench.training",
    "Upsampler": "generators.protocol",
    "Validated": "generators.protocol",
    "build_generator": "adm_bench.sampling",
    "check_samples": "adm_bench.checks",
    "decide": "adm_bench.sampling",
    "create_diffusion": "generators.adm.networks",
    "create_network": "generators.adm.networks",
    "evaluate": "adm_bench.evaluation",
    "generated_images": "adm_bench.sampling",
    "load_features": "adm_bench.evaluation",
    "load_metrics": "adm_bench.evaluation",
    "load_weights": "generators.adm.networks",
    "open_dataset": "adm_bench.images.sources",
    "open_image_set": "adm_bench.images.sources",
    "preset": "generators.adm.presets",
    "read_suite": "adm_bench.suite_file",
    "sample": "adm_bench.sampling",
    "train": "adm_bench.training",
    "write_reference": "adm_bench.reference_building",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605  one list, not two


def _check_leaves() -> None:
    """The leaves' names are common words: say so if another package of that name comes first on the path."""
    root = Path(__file__).resolve().parents[1]
    for leaf in ("generators", "metrics", "reports"):
        spec = importlib.util.find_spec(leaf)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != root / leaf:
            where = found or (list(spec.submodule_search_locations or []) if spec else "nowhere")
            raise ImportError(
                f"adm-bench needs its own package {leaf!r} at {root / leaf}, but Python finds {where}: "
                "rename that one, or run from another folder"
            )


_check_leaves()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
