"""References: what samples are measured against, in OpenAI's format, in formats of others, or as plain images.

OpenAI's npz holds `mu`, `sigma` (pool features), `mu_s`, `sigma_s` (spatial features), `arr_0` (images) and perhaps
`arr_1` (their labels); ours adds `adm_bench`, a JSON text that says what they are of. TTUR's, pytorch-fid's and
clean-fid's hold `mu` and `sigma` only.
"""

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
from metrics.protocol import Features
from metrics.statistics import FeatureSet, Moments

INCEPTION_WIDTHS = {"mu": 2048, "mu_s": 2023}
UNSTATED_FEATURES = {"inception": INCEPTION_WIDTHS, "clean": INCEPTION_WIDTHS, "dinov2": {"mu": 1024}}
"""Feature networks whose statistics other programs store without saying so, and the widths of these."""
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
    def open(cls, path: Path, *, size: int | None = None, convert: bool = False) -> "Reference":
        """Open an npz file, or images of any kind that `open_image_set` knows; InputError where it is no reference."""
        if path.suffix in PICKLES and path.is_file():
            raise InputError(why_not_pickles(path))
        if path.suffix != ".npz" or path.is_dir():
            return cls(path=path, file=None, images=open_image_set(path, size=size, convert=convert), identity={})
        file = NpzFile(path)
        if IMAGES_KEY not in file and not {"mu", "sigma"} <= file.headers.keys():
            raise InputError(f"{path}: no reference; expected arr_0, or mu and sigma, as adm-bench reference writes")
        images = NpzImages(path, [file], size) if IMAGES_KEY in file else None
        return cls(path=path, file=file if "mu" in file else None, images=images, identity=read_identity(file))

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(H, W) of the images that it is of; None where it does not say."""
        if self.images is not None:
            return self.images.image_shape
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
        stored = {"pool_moments", *({"spatial_moments"} if "mu_s" in self.file else ())}
        return frozenset(stored | (of_images & {"pool_rows"}))

    def check(self, features: Features, needs: frozenset[str]) -> None:
        """Before any network runs: InputError where its statistics are of other features, or needs are not served.

        Logits are needed of samples only.
        """
        if self.file is not None:
            self._require_features(features)
        missing = needs - self.serves - {"logit_rows"}
        if missing:
            held = {"pool_moments": "FID", "spatial_moments": "sFID", "pool_rows": "precision, recall and their like"}
            able = ", ".join(text for need, text in held.items() if need in self.serves)
            unable = ", ".join(text for need, text in held.items() if need in missing)
            raise InputError(
                f"{self.path}: holds no statistics or images for {unable}; it serves {able} only: name such metrics "
                "(--metrics fid), or take another reference"
            )

    def measure(self, extraction: Extraction, needs: frozenset[str]) -> FeatureSet:
        """Stored statistics where there are any, features of the images where those are needed.

        InputError as of `check`.
        """
        features, needs = extraction.features, needs - {"logit_rows"}
        self.check(features, needs)
        from_images = None
        if self.images is not None and (self.file is None or "pool_rows" in needs):
            wanted = needs if self.file is None else frozenset({"pool_rows"})
            from_images = extraction.measure(self.images, wanted, "reference features")
        if self.file is None:
            assert from_images is not None  # a reference has statistics or images
            return from_images
        if "features_sha256" not in self.identity:
            progress.say(f"{self.path}: does not say what its features are; taken as those of {features.name}")
        with bad_input(self.path):
            return FeatureSet(
                needs=needs,
                device=features.device,
                pool=self._moments("mu", "sigma"),
                spatial=self._moments("mu_s", "sigma_s") if "mu_s" in self.file else None,
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

    def _moments(self, mean: str, covariance: str) -> Moments:
        return Moments.from_mean_and_covariance(
            self._statistic(mean).ravel(), self._statistic(covariance), self.num_images
        )

    def _statistic(self, name: str) -> NDArray[np.float64]:
        """One stored array, of any floating type and order."""
        assert self.file is not None
        values = self.file.load(name)
        if values.dtype.kind != "f":
            raise ValueError(f"{name} is {values.dtype}; expected floating-point numbers")
        return np.ascontiguousarray(values, np.float64)


def why_not_pickles(path: Path) -> str:
    """The refusal of a pickled file."""
    return (
        f"{path}: is a pickle, which can run any program when it is opened, so it never is; where you trust it, "
        "convert it (EDM2's: python -c \"import pickle, numpy; s = pickle.load(open('ref.pkl', 'rb'))['fid']; "
        "numpy.savez('ref.npz', mu=s['mu'], sigma=s['sigma'])\", and 'fd_dinov2' in place of 'fid' for features dinov2)"
    )
