"""References: what samples are measured against, in OpenAI's format, in formats of others, or as plain images.

OpenAI's npz holds `mu`, `sigma` (pool features), `mu_s`, `sigma_s` (spatial features), `arr_0` (images) and perhaps
`arr_1` (their labels); ours adds `adm_bench`, a JSON text that says what they are of. TTUR's, pytorch-fid's and
clean-fid's hold `mu` and `sigma` only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm_bench import progress
from adm_bench.errors import InputError, bad_input
from adm_bench.extraction import Extraction
from adm_bench.files import file_sha256
from adm_bench.images.dataset import ImageSet
from adm_bench.images.npz import IMAGES_KEY, NpzFile, read_identity
from adm_bench.images.npz_images import NpzImages
from adm_bench.images.sources import open_image_set
from metrics.frechet import checked_gaussian
from metrics.protocol import Features, Metric
from metrics.statistics import FeatureSet, Moments

INCEPTION_WIDTHS = {"mu": 2048, "mu_s": 2023}
UNSTATED_FEATURES = {"inception": INCEPTION_WIDTHS, "clean": INCEPTION_WIDTHS, "dinov2": {"mu": 1024}}
"""Feature networks whose statistics other programs store without saying so, and the widths of these."""
STATISTICS = {"pool_moments": ("mu", "sigma"), "spatial_moments": ("mu_s", "sigma_s")}
"""Of the members of `metrics.statistics.NEEDS` those that are stored, and the names of mean and covariance."""
WAY_OUT = "make the statistics again, or take another reference"
PICKLES = (".pkl", ".pickle", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference: stored statistics, images, or both."""

    path: Path
    file: NpzFile | None
    """Where its statistics are stored; None: it has images only."""
    images: ImageSet | None
    identity: dict[str, Any]

    @classmethod
    def open(cls, path: Path, *, size: int | None = None, convert: bool = False, skip_bad: int = 0) -> "Reference":
        """Open an npz file, or images of any kind that `open_image_set` knows, which takes the same options.

        InputError where it is no reference.
        """
        if path.suffix in PICKLES and path.is_file():
            raise InputError(why_not_pickles(path))
        if path.suffix != ".npz" or path.is_dir():
            plain = open_image_set(path, size=size, convert=convert, skip_bad=skip_bad)
            return cls(path=path, file=None, images=plain, identity={})
        file = NpzFile(path)
        if IMAGES_KEY not in file and not {"mu", "sigma"} <= file.headers.keys():
            held = ", ".join(sorted(file.headers)) or "nothing"
            raise InputError(
                f"{path}: no reference; it holds {held}; expected arr_0, or mu and sigma, as adm-bench reference writes"
            )
        images = NpzImages(path, [file], size) if IMAGES_KEY in file else None
        has_statistics = any(name in file for names in STATISTICS.values() for name in names)
        found = cls(path=path, file=file if has_statistics else None, images=images, identity=read_identity(file))
        if has_statistics and size is not None:
            stored = None if IMAGES_KEY not in file else file.image_shape()[1:]
            found._require_statistics_of(size, stored)
        return found

    def _require_statistics_of(self, size: int, stored: tuple[int, int] | None) -> None:
        """InputError where the statistics are known to be of images of another size, which no crop can change."""
        measured = self._stated_shape or stored
        if measured not in (None, (size, size)):
            raise InputError(
                f"{self.path}: its statistics are of {measured[0]} x {measured[1]} images, which --size {size} cannot "
                "crop; leave --size away, or take another reference"
            )

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(H, W) of the images that it is of; None where it does not say."""
        return self._stated_shape if self.images is None else self.images.image_shape

    @property
    def _stated_shape(self) -> tuple[int, int] | None:
        """(H, W) that its identity states."""
        stated = self.identity.get("image_size")
        if stated is None:
            return None
        return (stated, stated) if isinstance(stated, int) else (int(stated[0]), int(stated[1]))

    @property
    def num_images(self) -> int | None:
        """Images behind its statistics, or its images where it has none; None where it does not say."""
        if self.file is None:
            return None if self.images is None else len(self.images)
        stated: int | None = self.identity.get("num_images")
        return stated

    def digest(self) -> str:
        """SHA-256 of its file, or of its images."""
        if self.path.is_file():
            return file_sha256(self.path)
        assert self.images is not None  # what is no file is images
        return self.images.digest()

    @property
    def serves(self) -> frozenset[str]:
        """The members of `metrics.statistics.NEEDS` that it can give."""
        of_images = {"pool_moments", "spatial_moments", "pool_rows", "logit_rows"} if self.images is not None else set()
        if self.file is None:
            return frozenset(of_images)
        stored = {need for need, names in STATISTICS.items() if all(name in self.file for name in names)}
        return frozenset(stored | (of_images & {"pool_rows"}))

    def check(self, features: Features, needs: frozenset[str], metrics: Sequence[Metric] = ()) -> None:
        """Before any network runs: InputError where it cannot give `needs`, or has too few images for the metrics.

        Its statistics must be of these features; those that are needed must be whole and usable. Logits are needed of
        samples only.
        """
        if self.file is not None:
            self._require_features(features)
        self._require_usable(needs - {"logit_rows"})
        for metric in metrics:
            self.check_metric(metric)

    def check_metric(self, metric: Metric) -> None:
        """As `check`, whatever the features: InputError where it cannot serve the metric."""
        needs = metric.needs - {"logit_rows"}
        self._require_usable(needs)
        if not needs or self.images is None or not (self.file is None or "pool_rows" in needs):
            return  # no image of it is read
        if len(self.images) < metric.min_images:
            raise InputError(
                f"{self.path}: holds {len(self.images)} images; {metric.label} needs {metric.min_images} or more of a "
                "reference: take a larger one, or name other metrics (--metrics)"
            )

    def _require_usable(self, needs: frozenset[str]) -> None:
        """InputError where statistics or images that are needed are absent, or such statistics are none."""
        for need in sorted(needs & STATISTICS.keys()):
            names = STATISTICS[need]
            held = [name for name in names if self.file is not None and name in self.file]
            if len(held) == 1:
                (absent,) = set(names) - set(held)
                raise InputError(f"{self.path}: holds {held[0]} and no {absent}; expected both or neither: {WAY_OUT}")
        missing = needs - self.serves
        if missing:
            kinds = {"pool_moments": "FID", "spatial_moments": "sFID", "pool_rows": "precision, recall and their like"}
            able = ", ".join(text for need, text in kinds.items() if need in self.serves)
            unable = ", ".join(text for need, text in kinds.items() if need in missing)
            raise InputError(
                f"{self.path}: holds no statistics or images for {unable}; it serves {able or 'nothing'} only: name "
                "such metrics (--metrics fid), or take another reference"
            )
        if self.file is not None:
            for need in sorted(needs & STATISTICS.keys()):
                self._moments(need)

    def measure(self, extraction: Extraction, needs: frozenset[str]) -> FeatureSet:
        """Stored statistics where they are needed and there, features of the images for the rest; nothing else.

        InputError as of `check`.
        """
        features, needs = extraction.features, needs - {"logit_rows"}
        self.check(features, needs)
        stored = frozenset[str]() if self.file is None else needs & STATISTICS.keys()
        from_images = None
        if needs - stored:
            assert self.images is not None  # as was checked
            from_images = extraction.measure(self.images, needs - stored, "reference features")
        if from_images is not None and not stored:
            return from_images
        if stored and "features_sha256" not in self.identity:
            progress.say(f"{self.path}: does not say what its features are; taken as those of {features.name}")
        with bad_input(self.path):
            return FeatureSet(
                needs=needs,
                device=features.device,
                pool=self._moments("pool_moments") if "pool_moments" in stored else None,
                spatial=self._moments("spatial_moments") if "spatial_moments" in stored else None,
                pool_rows=from_images.pool_rows if from_images is not None and len(from_images.pool_rows) else None,
            )

    def _require_features(self, features: Features) -> None:
        stated = self.identity.get("features_sha256")
        if stated is not None:
            # Both count: one network's weights serve two protocols.
            if (self.identity.get("features"), stated) != (features.name, features.digest):
                raise InputError(
                    f"{self.path}: its statistics are of features {self.identity.get('features', '')} {stated[:12]}; "
                    f"these are {features.name} {features.digest[:12]}: build the reference anew"
                )
            return
        assert self.file is not None
        widths = UNSTATED_FEATURES.get(features.name)
        if widths is None:
            raise InputError(
                f"{self.path}: does not say which features its statistics are of, as those of "
                f"{' or '.join(UNSTATED_FEATURES)} need not; these are {features.name}: build the reference anew"
            )
        for name, width in widths.items():
            if name in self.file and np.prod(self.file.headers[name][0], dtype=object) != width:
                raise InputError(
                    f"{self.path}: {name} has the shape {self.file.headers[name][0]}, but features {features.name} "
                    f"are {width}: take a reference of these features"
                )

    def _moments(self, need: str) -> Moments:
        """Stored mean and covariance; InputError where they are no such thing."""
        mean_name, covariance_name = STATISTICS[need]
        mean, covariance = self._statistic(mean_name).ravel(), self._statistic(covariance_name)
        if covariance.shape != (mean.size, mean.size):
            raise InputError(
                f"{self.path}: {covariance_name} is {covariance.shape} and {mean_name} has {mean.size} values; "
                f"expected ({mean.size}, {mean.size}): {WAY_OUT}"
            )
        with bad_input(f"{self.path}: {mean_name}, {covariance_name}"):
            checked_gaussian(mean, covariance)
            return Moments.from_mean_and_covariance(mean, covariance, self.num_images)

    def _statistic(self, name: str) -> NDArray[np.float64]:
        """One stored array, of any floating type and order; InputError for other types and for NaN or infinity."""
        assert self.file is not None
        shape, dtype = self.file.headers[name]
        if dtype.kind != "f":
            raise InputError(f"{self.path}: {name} is {dtype}; expected floating-point numbers: {WAY_OUT}")
        values = np.ascontiguousarray(self.file.load(name), np.float64)
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            raise InputError(
                f"{self.path}: {bad} of {values.size} values of {name} {shape} are NaN or infinite; expected finite "
                f"numbers: {WAY_OUT}"
            )
        return values


def why_not_pickles(path: Path) -> str:
    """The refusal of a pickled file."""
    return (
        f"{path}: is a pickle, which can run any program when it is opened, so it never is; where you trust it, "
        "convert it (EDM2's: python -c \"import pickle, numpy; s = pickle.load(open('ref.pkl', 'rb'))['fid']; "
        "numpy.savez('ref.npz', mu=s['mu'], sigma=s['sigma'])\", and 'fd_dinov2' in place of 'fid' for features dinov2)"
    )
