"""What each measured quantity is called, which direction is better, and how its numbers are written."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from reports.records import Record

Room = Literal["quality", "network", "sampling", "training"]
NO_NUMBER = "–"
LARGEST_DECIMALS = 4

_INCEPTIONS_NAMES = (None, "inception", "clean", "digits")
"""Features whose numbers have the names that the Inception network gave: its own, and those that stand in for them."""
_STAND_INS = ("digits",)
_SPELT = {"dinov2": "DINOv2"}
_BESIDE_FEATURES = {"fid": "FD-{}", "fid_infinity": "FD∞-{}", "sfid": "sFD-{}", "kid": "KD-{}"} | {
    "kid_subsets": "KD-{} subsets",
    "is": "IS-{}",
    "is_shuffled": "IS-{} shuffled",
}
"""What stands in place of the names that hold an I for Inception (FD-DINOv2, KD: Stein et al. 2023)."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """How one quantity is presented.

    `label` heads its column, `short_label` does so in a terminal, where it may also break before a slash.
    `write` turns a value and a number of decimals into text. `ranked` says whether a column names its best
    row, `must_agree` which circumstances its rows must share before they can be ranked. A `usual` quantity has a
    column of quality even where nobody measured it.
    """

    name: str
    label: str
    short_label: str
    room: Room
    higher_is_better: bool | None
    meaning: str
    write: Callable[[float, int], str]
    decimals: int = 0
    ranked: bool = True
    must_agree: tuple[str, ...] = ()
    usual: bool = True

    @property
    def arrow(self) -> str:
        """`↑` where higher is better, `↓` where lower is, nothing where neither is."""
        if self.higher_is_better is None:
            return ""
        return "↑" if self.higher_is_better else "↓"

    def text(self, value: float | None, decimals: int | None = None) -> str:
        """Write one value; without a number of decimals, with the quantity's own."""
        if value is None or not math.isfinite(value):
            return NO_NUMBER
        return self.write(value, self.decimals if decimals is None else decimals)

    def decimals_for(self, values: Iterable[float]) -> int:
        """Decimals that leave the smallest of a column's values two digits, from 0.001 up."""
        if self.write is not in_decimals:
            return self.decimals
        told_apart = [abs(value) for value in values if math.isfinite(value) and abs(value) >= 0.001]
        decimals = self.decimals
        while told_apart and decimals < LARGEST_DECIMALS and min(told_apart) < 10 ** (1 - decimals):
            decimals += 1
        return decimals


def in_decimals(value: float, decimals: int) -> str:
    """1.234 -> 1.23."""
    return f"{value:.{decimals}f}"


def in_percent(value: float, decimals: int) -> str:
    """0.034 -> 3.4 %; a share that is neither 0 nor 1 never reads 0 % nor 100 %."""
    percent = 100 * value
    if percent in (0, 100):
        return f"{percent:.0f} %"
    least = 10**-decimals
    return f"{min(max(percent, least), 100 - least):.{decimals}f} %"


def in_si(value: float, _decimals: int) -> str:
    """1.23e10 -> 12.3 G: three significant digits and an SI prefix."""
    rounded = float(f"{value:.3g}")
    size = abs(rounded)
    if size < 1:
        return f"{rounded:g}"
    power = min(int(math.log10(size) + 1e-9) // 3, 6)
    scaled = rounded / 1000**power
    digits = 0 if power == 0 and rounded == int(rounded) else max(0, 2 - int(math.log10(abs(scaled)) + 1e-9))
    return f"{scaled:.{digits}f} {'kMGTPE'[power - 1]}" if power else f"{scaled:.{digits}f}"


def in_units(value: float, _decimals: int) -> str:
    """1212.4 -> 1,212; 12.5 -> 12.5."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:,.1f}"


_SAME_IMAGES = ("num_images", "num_reference_images")
_SAME_MACHINE = ("device", "world_size")

QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            name="fid",
            label="FID",
            short_label="FID",
            room="quality",
            higher_is_better=False,
            meaning="Fréchet distance between the pooled features of generated and real images: "
            "fidelity and variety in one number",
            write=in_decimals,
            decimals=2,
            must_agree=_SAME_IMAGES,
        ),
        Quantity(
            name="fid_infinity",
            label="FID∞",
            short_label="FID∞",
            room="quality",
            higher_is_better=False,
            meaning="FID extrapolated to infinitely many generated images, which their number does not bias",
            write=in_decimals,
            decimals=2,
            must_agree=("num_reference_images",),
            usual=False,
        ),
        Quantity(
            name="sfid",
            label="sFID",
            short_label="sFID",
            room="quality",
            higher_is_better=False,
            meaning="the same distance on spatial features: are the parts where they belong",
            write=in_decimals,
            decimals=2,
            must_agree=_SAME_IMAGES,
        ),
        Quantity(
            name="kid",
            label="KID",
            short_label="KID",
            room="quality",
            higher_is_better=False,
            meaning="kernel distance between the pooled features; the number of images does not bias it, and "
            "it may be negative",
            write=in_decimals,
            decimals=5,
            must_agree=(),
            usual=False,
        ),
        Quantity(
            name="kid_subsets",
            label="KID subsets",
            short_label="KID\nsubsets",
            room="quality",
            higher_is_better=False,
            meaning="the mean of the same over random subsets",
            write=in_decimals,
            decimals=5,
            must_agree=(),
            usual=False,
        ),
        Quantity(
            name="is",
            label="IS",
            short_label="IS",
            room="quality",
            higher_is_better=True,
            meaning="Inception Score: single images classified with confidence, all classes covered; "
            "at most the number of classes",
            write=in_decimals,
            decimals=2,
            must_agree=("num_images",),
        ),
        Quantity(
            name="is_shuffled",
            label="IS shuffled",
            short_label="IS\nshuffled",
            room="quality",
            higher_is_better=True,
            meaning="Inception Score of the images in random order: where it is far above IS, the file is "
            "sorted by class",
            write=in_decimals,
            decimals=2,
            must_agree=("num_images",),
            usual=False,
        ),
        Quantity(
            name="precision",
            label="Precision",
            short_label="Prec.",
            room="quality",
            higher_is_better=True,
            meaning="share of generated images that fall among the real ones: fidelity",
            write=in_decimals,
            decimals=3,
            must_agree=_SAME_IMAGES,
        ),
        Quantity(
            name="recall",
            label="Recall",
            short_label="Recall",
            room="quality",
            higher_is_better=True,
            meaning="share of real images that fall among the generated ones: variety",
            write=in_decimals,
            decimals=3,
            must_agree=_SAME_IMAGES,
        ),
        Quantity(
            name="f_score",
            label="F-score",
            short_label="F",
            room="quality",
            higher_is_better=True,
            meaning="harmonic mean of precision and recall",
            write=in_decimals,
            decimals=3,
            must_agree=_SAME_IMAGES,
            usual=False,
        ),
        Quantity(
            name="density",
            label="Density",
            short_label="Dens.",
            room="quality",
            higher_is_better=True,
            meaning="in how many neighbourhoods of real images a generated one lies, over the number "
            "expected: fidelity; about 1 for real images",
            write=in_decimals,
            decimals=3,
            must_agree=_SAME_IMAGES,
            usual=False,
        ),
        Quantity(
            name="coverage",
            label="Coverage",
            short_label="Cover.",
            room="quality",
            higher_is_better=True,
            meaning="share of real images with a generated one in their neighbourhood: variety",
            write=in_decimals,
            decimals=3,
            must_agree=_SAME_IMAGES,
            usual=False,
        ),
        Quantity(
            name="copied",
            label="Copied",
            short_label="Copied",
            room="quality",
            higher_is_better=False,
            meaning="share of generated images that repeat a training image: a check on all the others",
            write=in_percent,
            decimals=1,
            ranked=False,
        ),
        Quantity(
            name="parameters",
            label="parameters",
            short_label="params",
            room="network",
            higher_is_better=None,
            meaning="learned numbers in all networks that sampling uses",
            write=in_si,
        ),
        Quantity(
            name="forward_macs_per_image",
            label="forward MACs",
            short_label="fwd\nMACs",
            room="network",
            higher_is_better=None,
            meaning="multiply-accumulates of one pass of the network over one image",
            write=in_si,
        ),
        Quantity(
            name="forward_flops_per_image",
            label="forward FLOPs",
            short_label="fwd\nFLOPs",
            room="network",
            higher_is_better=None,
            meaning="the same in floating-point operations, two to a multiply-accumulate",
            write=in_si,
        ),
        Quantity(
            name="network_evaluations_per_image",
            label="evaluations/image",
            short_label="evals/image",
            room="sampling",
            higher_is_better=False,
            meaning="passes of the network that one image takes",
            write=in_units,
        ),
        Quantity(
            name="sampling_flops_per_image",
            label="FLOPs/image",
            short_label="FLOPs/image",
            room="sampling",
            higher_is_better=False,
            meaning="floating-point operations to sample one image, guidance included",
            write=in_si,
        ),
        Quantity(
            name="sampling_images_per_sec",
            label="images/sec",
            short_label="images/sec",
            room="sampling",
            higher_is_better=True,
            meaning="images sampled a second; it depends on the device",
            write=in_si,
            must_agree=_SAME_MACHINE,
        ),
        Quantity(
            name="training_images_per_sec",
            label="training images/sec",
            short_label="train\n/sec",
            room="training",
            higher_is_better=True,
            meaning="images trained on a second; it depends on the device",
            write=in_si,
            ranked=False,
        ),
        Quantity(
            name="training_sec",
            label="training sec",
            short_label="train\nsec",
            room="training",
            higher_is_better=False,
            meaning="how long training took; it depends on the device",
            write=in_units,
            ranked=False,
        ),
        Quantity(
            name="training_images",
            label="training images",
            short_label="train\nimages",
            room="training",
            higher_is_better=None,
            meaning="images seen in training, repeats counted",
            write=in_si,
        ),
    )
}


def of_features(quantity: Quantity, features: str | None) -> Quantity:
    """Return a quantity under its name with these features: FID is of Inception's, FD-DINOv2 of DINOv2's."""
    if quantity.name not in _BESIDE_FEATURES:
        return quantity
    if features in _STAND_INS:
        ours = f"{quantity.meaning} (of features {features}: it compares with nothing published)"
        return replace(quantity, meaning=ours)
    if features in _INCEPTIONS_NAMES:
        return quantity
    label = _BESIDE_FEATURES[quantity.name].format(_SPELT.get(features, features))
    short, dash, rest = label.partition("-")
    return replace(quantity, label=label, short_label=f"{short}{dash}\n{rest}".replace(" ", "\n"))


def quantity_of(record: Record) -> Quantity:
    """Return a record's row of the table; for a quantity that has none, one drawn from the record itself."""
    if known := QUANTITIES.get(record.quantity):
        return of_features(known, record.features)
    taken = any(record.quantity == of_features(each, record.features).label for each in QUANTITIES.values())
    label = f"{record.quantity} (plug-in)" if taken else record.quantity
    return Quantity(
        name=record.quantity,
        label=label,
        short_label=label,
        room="sampling" if record.protocol is None else "quality",
        higher_is_better=record.higher_is_better,
        meaning=f"measured by a plug-in{f', in {record.unit}' if record.unit else ''}",
        write=in_decimals if record.protocol is not None else in_si,
        decimals=3,
        must_agree=() if record.protocol is None else _SAME_IMAGES,
    )
