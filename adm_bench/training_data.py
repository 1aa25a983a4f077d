"""Whether data are what a network is trained on, and what is done about images that turn out unreadable."""

from collections.abc import Iterable, Mapping

import numpy as np

from adm_bench import progress
from adm_bench.errors import InputError
from adm_bench.images.dataset import Dataset
from adm_bench.images.encoded import EncodedImages
from adm_bench.ranks import Ranks
from generators.adm.config import NetworkConfig


def require_fit(data: Dataset, config: NetworkConfig) -> None:
    """InputError where a data set is not what a network is trained on, or validated with."""
    model = config.model
    if data.image_size != model.image_size:
        raise InputError(f"data set {data.name} has size {data.image_size}, but model.image_size is {model.image_size}")
    if model.num_classes is None:
        return
    if data.num_classes is None:
        raise InputError(
            f"data set {data.name} has no labels, but model.num_classes is {model.num_classes}; where names of files "
            "begin with their class, give --labels prefix; where folders are classes, --labels folder says which image "
            "is in none; and for a network without classes, --set model.num_classes=none"
        )
    if data.num_classes > model.num_classes:
        raise InputError(
            f"data set {data.name} has {data.num_classes} classes, but model.num_classes is {model.num_classes}; give "
            f"--set model.num_classes={data.num_classes}"
        )


def notes(data: Dataset, config: NetworkConfig) -> list[str]:
    """What a person should know of data that fit a network and may not be all that was meant, a line each."""
    found = [data.left_out(), data.empty_classes()] if isinstance(data, EncodedImages) else []
    return [note for note in (*found, _untrained_classes(data, config)) if note is not None]


def _untrained_classes(data: Dataset, config: NetworkConfig) -> str | None:
    known = config.model.num_classes
    if known is None or data.labels is None:
        return None
    missing = np.setdiff1d(np.arange(known), data.labels)
    if not len(missing):
        return None
    return (
        f"{len(missing)} of the network's {known} classes have no image (the first is {missing[0]}), and samples of "
        "these classes will be nobody's; choose as many classes as there are (--set model.num_classes=N), or do not "
        "sample those"
    )


class PassedOver:
    """The unreadable images of a data set that training has met, in whose places it took others: on all processes."""

    def __init__(self, allowed: int, known: Iterable[int] = ()) -> None:
        """At most `allowed` different ones may be unreadable; `known` are the indices of those met before.

        InputError where these are too many already.
        """
        self.allowed = allowed
        self.indices = set(known)
        if len(self.indices) > allowed:
            raise InputError(
                f"--skip-bad {allowed}: {len(self.indices)} unreadable images were met before; allow at least as many"
            )

    def news(self, found: Mapping[int, str]) -> dict[str, str]:
        """What is not known yet of what this process has found: by index, as plain data, what is wrong with it."""
        return {str(index): found[index] for index in sorted(found.keys() - self.indices)}

    def join(self, found: Mapping[int, str], ranks: Ranks) -> list[str]:
        """What is wrong with images that any process has found anew, of which a person is told. Collective.

        InputError, the same on every process, where there are more than are allowed.
        """
        parts = ranks.gather_plain(self.news(found))
        joined = {int(index): why for part in parts for index, why in part.items()}
        self.indices.update(joined)
        said = [joined[index] for index in sorted(joined)]
        if len(self.indices) > self.allowed:
            raise InputError(
                f"{said[0]}; {len(self.indices)} unreadable images were met, and --skip-bad allows {self.allowed}"
            )
        for why in said:
            progress.say(f"note: {why.partition('; mend')[0]}; another image is taken in its place")
        return said
