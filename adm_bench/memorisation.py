"""Do samples repeat what a generator was trained on: nearest training images, and the distances to them, as figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from adm_bench import progress
from adm_bench.checks import require_other, require_same_size
from adm_bench.errors import InputError, bad_input
from adm_bench.extraction import Extraction
from adm_bench.files import atomic_path
from adm_bench.images.dataset import Images, ImageSet
from adm_bench.images.iterated import IteratedImages
from adm_bench.images.npz import NpzFile, read_identity
from adm_bench.images.sources import open_image_set
from adm_bench.references import Reference
from metrics.comparison import Comparison
from metrics.copies import nearest_distances
from metrics.neighbours import nearest_neighbours
from metrics.uncertainty import share_interval
from reports.figures import png_bytes
from reports.memorisation import DistanceCurves, NeighbourRow, distance_plot, neighbour_grid

SMALLEST_TILE_PX = 64
PICTURE_BUDGET_PX = 2**26
READ_BATCH = 64
WIDE_INTERVAL = 0.1
"""Of the share of copies: what is known no closer comes with a warning."""
ROWS = frozenset({"pool_rows"})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A figure, and what it shows in one line."""

    picture: Image.Image
    text: str

    def write(self, out: Path) -> None:
        """Keep the figure as a PNG."""
        with atomic_path(out) as temporary:
            temporary.write_bytes(png_bytes(self.picture))


def open_training(path: Path, *, size: int | None = None, convert: bool = False) -> Reference:
    """Training images, as a reference that has nothing but images; says so where they are some of more.

    A path or a registered name, as of `open_image_set`.
    """
    images = open_image_set(path, size=size, convert=convert)
    identity = read_identity(NpzFile(path)) if path.suffix == ".npz" and path.is_file() else {}
    behind = identity.get("num_images")
    if isinstance(behind, int) and behind > len(images):
        progress.say(
            f"warning: {path}: holds {len(images)} of the {behind} images that it is a reference of; images that are "
            "not in it are not found"
        )
    return Reference(path=path, file=None, images=images, identity=identity)


def choose_samples(samples: ImageSet, num: int, seed: int) -> list[int]:
    """Numbers of so many samples, drawn by the seed, in order; InputError where there are fewer."""
    if num > len(samples):
        raise InputError(f"--num {num}: {samples.name} holds {len(samples)} images")
    return sorted(int(index) for index in np.random.default_rng(seed).choice(len(samples), num, replace=False))


def show_neighbours(
    training: Reference,
    samples: ImageSet,
    extraction: Extraction,
    chosen: Sequence[int],
    *,
    num_neighbours: int,
    scale: int | None,
) -> Finding:
    """Chosen samples with their nearest training images (Dhariwal & Nichol 2021, Appendix C), by pooled features.

    Only the chosen ones run through the network. `scale` None enlarges images below 64 pixels to at least that.
    InputError for samples that there are not, another size, too few training images, or too large a picture.
    """
    images, scale = _images(training), scale or -(-SMALLEST_TILE_PX // min(samples.image_shape))
    _require_possible(images, samples, chosen, num_neighbours, scale)
    require_same_size(samples, training)
    require_other(samples, training)
    shown = _read(samples, chosen)
    known = training.measure(extraction, ROWS)
    few = IteratedImages(samples.name, [shown], len(shown), samples.image_shape)
    found = replace(extraction, cache_root=None).measure(few, ROWS, "chosen samples")
    with bad_input(f"{samples.name} against {training.path}"):
        nearest = nearest_neighbours(
            found.pool_rows, known.pool_rows, num_neighbours, device=extraction.features.device
        )
    indices, distances = nearest.indices.numpy(), nearest.squared_distances.sqrt().numpy()
    needed = np.unique(indices)
    pictures = _read(images, [int(index) for index in needed])
    texts = _in_words(distances.tolist())
    rows = [
        NeighbourRow(
            sample=_pixels(shown[row : row + 1])[0],
            name=f"#{chosen[row]}",
            neighbours=_pixels(pictures[np.searchsorted(needed, indices[row])]),
            captions=tuple(texts[row]),
        )
        for row in range(len(chosen))
    ]
    title = f"nearest of {len(images):,} training images, with distances in {extraction.features.name} features"
    closest = int(distances[:, 0].argmin())
    return Finding(
        picture=neighbour_grid(rows, ("sample", title), scale),
        text=f"{len(chosen)} samples against {len(images)} training images, {_features(extraction)}: the nearest ones "
        f"lie at {distances[:, 0].min():.4g} to {distances[:, 0].max():.4g}, median {np.median(distances[:, 0]):.4g}; "
        f"sample {chosen[closest]} is closest, to image {indices[closest, 0]}",
    )


def show_memorisation(training: Reference, samples: ImageSet, extraction: Extraction) -> Finding:
    """How far samples lie from the nearest training image, beside how far these lie from each other.

    InputError for another size, too few images, or the training images as samples.
    """
    require_same_size(samples, training)
    require_other(samples, training)
    known = training.measure(extraction, ROWS)
    measured = extraction.measure(samples, ROWS, "samples")
    # no number here is of precision's half arithmetic, so its pass is not made
    protocol = replace(extraction.features.protocol, pr_precision="fp32")
    num_training = len(known.pool_rows)
    with (
        bad_input(f"{samples.name} against {training.path}"),
        progress.stage("distances to training images", num_training + len(samples), "images") as advance,
    ):
        comparison = Comparison(
            samples=measured,
            reference=known,
            protocol=protocol,
            compared=lambda num_pairs: advance(num_pairs / num_training),
        )
        distances = nearest_distances(comparison)
    share = share_interval(distances.of_samples <= distances.copies_up_to)
    if share.high - share.low > WIDE_INTERVAL:
        progress.say(
            f"warning: {samples.name}: {len(samples)} samples are few: the share of copies is known no closer than "
            f"{100 * share.low:.3g} to {100 * share.high:.3g} % (95 %), and the curves as coarsely; take more"
        )
    curves = DistanceCurves(
        of_samples=distances.of_samples,
        of_training=distances.of_reference,
        copies_up_to=distances.copies_up_to,
        copied_share=distances.copied_share,
        unit=f"{extraction.features.name} features",
    )
    medians = np.median(distances.of_samples), np.median(distances.of_reference)
    return Finding(
        picture=distance_plot(curves),
        text=f"{len(samples)} samples against {len(_images(training))} training images, {_features(extraction)}: "
        f"{100 * distances.copied_share:.4g} % are copies; median distance to the nearest training image "
        f"{medians[0]:.4g}, of training images to the nearest other one {medians[1]:.4g}",
    )


def _images(training: Reference) -> ImageSet:
    assert training.images is not None  # `open_training` gave it some
    return training.images


def _features(extraction: Extraction) -> str:
    return f"features {extraction.features.name} {extraction.features.digest[:12]}"


def _require_possible(
    images: ImageSet, samples: ImageSet, chosen: Sequence[int], num_neighbours: int, scale: int
) -> None:
    """Before a network runs: InputError where samples or neighbours are missing, or the picture grows too large."""
    for index in chosen:
        if not 0 <= index < len(samples):
            raise InputError(f"--samples: there is no image {index}; {samples.name} has 0 to {len(samples) - 1}")
    if num_neighbours > len(images):
        raise InputError(f"--neighbours {num_neighbours}: {images.name} holds {len(images)} images")
    pixels = len(chosen) * (num_neighbours + 1) * math.prod(samples.image_shape) * scale**2
    if pixels > PICTURE_BUDGET_PX:
        raise InputError(
            f"the figure would have {pixels / 1e6:.0f} megapixels, and {PICTURE_BUDGET_PX / 1e6:.0f} are the most: "
            "ask for fewer samples or neighbours, or a smaller --scale-up or --size"
        )


def _read(images: ImageSet, indices: Sequence[int]) -> Images:
    """Some images (B, 3, H, W): picked where the source allows it, else gathered in one pass over a part of it."""
    pick = getattr(images, "read", None)  # `Dataset`s have it
    if pick is not None:
        picked: Images = pick(indices)[0]
        return picked
    first, last = min(indices), max(indices)
    found = np.empty((len(indices), 3, *images.image_shape), np.uint8)
    position = first
    for batch in images.batches(READ_BATCH, first):
        for place, index in enumerate(indices):
            if position <= index < position + len(batch):
                found[place] = batch[index - position]
        position += len(batch)
        if position > last:
            break
    return found


def _pixels(images: Images) -> Images:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _in_words(distances: Sequence[Sequence[float]]) -> list[list[str]]:
    """Distances with three digits of the largest, so that a copy reads as 0."""
    largest = max(max(row) for row in distances)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0
    return [[f"{distance:.{decimals}f}" for distance in row] for row in distances]
