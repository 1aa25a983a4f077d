"""Whether data are what a network is trained on, and what is done about images that turn out unreadable."""

from collections.abc import Iterable, Mapping

from adm_bench import progress
from adm_bench.errors import InputError
from adm_bench.images.dataset import Dataset
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


class PassedOver:
    """The unreadable images of a data set that training has met, in whose places it took others: on all processes."""

    def __init__(self, allowed: int, known: Iterable[int] = ()) -> None:
        """At most `allowed` different ones may be unreadable; `known` are the indices of those met before."""
        self.allowed = allowed
        self.indices = set(known)

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
