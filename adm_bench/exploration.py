"""What a diffusion model has learned, to be looked at: round trips, ways between images, guidance, temperature."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adm_bench import progress
from adm_bench.errors import InputError, bad_input
from adm_bench.files import atomic_path
from adm_bench.images.dataset import Dataset, Labels
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.sources import open_dataset
from adm_bench.sampling import build_generator, image_seeds
from generators.adm.generator import Adm
from generators.diffusion.encoding import interpolate
from generators.levels import from_uint8, to_uint8
from reports.figures import captioned_strips, png_bytes

IMAGES_SHOWN = 16
DEFAULT_NUM_PAIRS = 4
ROUND_TRIP_STEPS = 250
SMALLEST_TILE_PX = 64
GUIDING_OPTIONS = ("classifier", "classifier_preset", "guidance_scale")
STEP_OPTIONS = ("sampling_steps", "section_steps", "timesteps")
Temperature = Literal["noise", "epsilon"]
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """A figure before it is drawn, and what was measured on the way."""

    strips: tuple[tuple[str, NDArray[np.uint8]], ...]
    """Rows: a caption, and its images (N, H, W, 3)."""
    finding: str


def write_figure(exploration: Exploration, out: Path, scale: int | None) -> None:
    """Draw the strips into a PNG; `scale` None enlarges images below 64 pixels to at least that."""
    side = exploration.strips[0][1].shape[1]
    picture = captioned_strips(exploration.strips, scale or -(-SMALLEST_TILE_PX // side))
    with atomic_path(out) as temporary:
        temporary.write_bytes(png_bytes(picture))


def open_model(weights: Path, options: Mapping[str, Any], device: torch.device) -> Adm:
    """An ADM from its weights and the sampling options of `SamplingConfig`; InputError where there is none."""
    model = build_generator("adm", dict(options), device=device, weights=weights)
    assert isinstance(model, Adm)  # its built-in name cannot be taken
    return model


def open_round_trip_model(weights: Path, options: Mapping[str, Any], device: torch.device) -> Adm:
    """An ADM that encodes and decodes: DDIM without noise in 250 steps, unless the options say other steps.

    Levels are rounded to the nearest, because truncation would count as an error of the round trip.
    """
    require_unset(options, GUIDING_OPTIONS, "encoding and decoding are not guided")
    if options.get("sampler", "ddim") != "ddim" or options.get("eta"):
        raise InputError("--set: only sampler 'ddim' at eta 0 encodes and decodes; leave sampler and eta away")
    steps = {} if any(options.get(name) for name in STEP_OPTIONS) else {"sampling_steps": ROUND_TRIP_STEPS}
    return open_model(weights, {"rounding": "nearest", **options, **steps, "sampler": "ddim"}, device)


def require_unset(options: Mapping[str, Any], names: Sequence[str], reason: str) -> None:
    """InputError where one of `names` is among the options that were given."""
    for name in names:
        if name in options:
            raise InputError(f"--set {name}: {reason}; leave it away")


def open_images(source: str, model: Adm) -> Dataset:
    """The data set in the size that the model was made for; InputError where its classes are not the model's."""
    dataset = open_dataset(source, model.image_size)
    if dataset.image_size != model.image_size:
        raise InputError(f"data set {source}: images of size {dataset.image_size}; the model's are {model.image_size}")
    if model.num_classes is None:
        return dataset
    if dataset.num_classes is None:
        raise InputError(
            f"data set {source}: has no labels, and this model knows images by {model.num_classes} classes"
        )
    # a folder's labels are the ranks of its classes, so a missing class would shift the others; labels that a
    # file states mean the same whether or not the last class occurs
    ranked = isinstance(dataset, EncodedImages) and dataset.class_names
    shifted = ranked and dataset.num_classes < model.num_classes
    if shifted or dataset.num_classes > model.num_classes:
        raise InputError(f"data set {source}: has {dataset.num_classes} classes; the model has {model.num_classes}")
    return dataset


def choose_images(dataset: Dataset, num_images: int | None) -> list[int]:
    """Indices of the images to look at: the first ones, and where they are labelled, the first of each class in turn.

    Fewer images than classes are spread over all classes; None takes every image. InputError where they do
    not suffice.
    """
    if num_images is None:
        return list(range(len(dataset)))
    if num_images > len(dataset):
        raise InputError(f"--num {num_images}: the data set {dataset.name} holds {len(dataset)} images")
    labels = dataset.labels
    return list(range(num_images)) if labels is None else _spread_over_classes(labels, num_images)


def _spread_over_classes(labels: Labels, num_images: int) -> list[int]:
    classes, first = np.unique(labels, return_index=True)
    if num_images < len(classes):
        chosen = first[np.arange(num_images) * len(classes) // num_images]
    else:
        order = np.argsort(labels, kind="stable")
        place_in_class = np.empty_like(order)
        place_in_class[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
        chosen = np.lexsort((labels, place_in_class))[:num_images]
    return [int(index) for index in chosen]


def read_images(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """uint8 images (B, 3, H, W) and their labels (B,), if they have some."""
    images, labels = dataset.read(indices)
    return torch.from_numpy(np.ascontiguousarray(images)), None if labels is None else torch.from_numpy(labels)


Work = Callable[[slice, Callable[[], None]], Tensor]
"""Treats the images of a slice, reporting every network evaluation."""


def _in_batches(title: str, model: Adm, num_images: int, batch_size: int, work: Work) -> Tensor:
    """What the work makes of every image, on the CPU; InputError where that is not finite."""
    parts = []
    with progress.stage(title, num_images, "images") as advance:
        for start in range(0, num_images, batch_size):
            batch = slice(start, min(start + batch_size, num_images))
            share = (batch.stop - start) / model.network_evaluations
            try:
                parts.append(work(batch, partial(advance, share)).cpu())
            except FloatingPointError as error:
                raise InputError(f"{title}: {error}") from error
    return torch.cat(parts)


def _of(labels: Tensor | None, batch: slice) -> Tensor | None:
    return None if labels is None else labels[batch]


def _encode(model: Adm, images: Tensor, labels: Tensor | None, batch_size: int) -> Tensor:
    def work(batch: slice, evaluated: Callable[[], None]) -> Tensor:
        return model.encode(images[batch], _of(labels, batch), evaluated)

    return _in_batches("encode", model, len(images), batch_size, work)


def _decode(model: Adm, latents: Tensor, labels: Tensor | None, batch_size: int) -> Tensor:
    def work(batch: slice, evaluated: Callable[[], None]) -> Tensor:
        return model.decode(latents[batch].to(model.device), _of(labels, batch), evaluated)

    return _in_batches("decode", model, len(latents), batch_size, work)


def squared_errors(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference of two batches of uint8 images, in levels, for each image: (B,) float64."""
    return (images.double() - others.double()).square().flatten(1).mean(dim=1)


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images with this mean squared error; infinite where it is 0."""
    return math.inf if squared_error == 0 else 10 * math.log10(255**2 / squared_error)


def _strip(images: Tensor) -> NDArray[np.uint8]:
    strip: NDArray[np.uint8] = images.permute(0, 2, 3, 1).contiguous().numpy()
    return strip


def reconstruct(model: Adm, dataset: Dataset, num_images: int, batch_size: int) -> Exploration:
    """Images encoded by DDIM and decoded again; latents are shown clamped to [-1, 1]."""
    indices = choose_images(dataset, num_images)
    images, labels = read_images(dataset, indices)
    latents = _encode(model, images, labels, batch_size)
    decoded = _decode(model, latents, labels, batch_size)
    errors = squared_errors(images, decoded)
    worst = int(errors.argmax())
    shown = slice(IMAGES_SHOWN)
    return Exploration(
        strips=(
            ("original", _strip(images[shown])),
            ("latent", _strip(to_uint8(latents[shown], "nearest"))),
            ("reconstruction", _strip(decoded[shown])),
        ),
        finding=f"{num_images} images through {model.network_evaluations} DDIM steps and back: "
        f"PSNR {psnr(float(errors.mean())):.2f} dB over all, {psnr(float(errors.max())):.2f} dB for the worst "
        f"(image {indices[worst]})",
    )


def default_pairs(dataset: Dataset) -> list[Pair]:
    """The first two images of a few classes, or the first images of unlabelled data; InputError without any."""
    labels = dataset.labels
    if labels is None:
        pairs = [(first, first + 1) for first in range(0, len(dataset) - 1, 2)]
        chosen = pairs[:DEFAULT_NUM_PAIRS]
    else:
        classes, counts = np.unique(labels, return_counts=True)
        members = [np.flatnonzero(labels == each)[:2] for each in classes[counts > 1]]
        spread = range(min(DEFAULT_NUM_PAIRS, len(members)))
        places = [place * len(members) // len(spread) for place in spread]
        chosen = [(int(members[place][0]), int(members[place][1])) for place in places]
    if not chosen:
        raise InputError(f"data set {dataset.name}: no two images of one class; name some with --pairs I:J")
    return chosen


def show_ways(model: Adm, dataset: Dataset, pairs: Sequence[Pair], num_points: int, batch_size: int) -> Exploration:
    """From image to image along the great circle between their latents (Dhariwal & Nichol 2021, Figure 10).

    A class-conditional model encodes each end with its own label, and decodes a point with that of the nearer
    end, in the middle with the first one's. InputError where a pair names an image that there is not.
    """
    for index in {index for pair in pairs for index in pair}:
        if not 0 <= index < len(dataset):
            raise InputError(f"--pairs: there is no image {index}; data set {dataset.name} has 0 to {len(dataset) - 1}")
    ends = sorted({index for pair in pairs for index in pair})
    images, labels = read_images(dataset, ends)
    latents = _encode(model, images, labels, batch_size)
    first, second = (torch.tensor([ends.index(pair[side]) for pair in pairs]) for side in (0, 1))
    fractions = [point / (num_points - 1) for point in range(num_points)]
    points = interpolate(latents[first], latents[second], fractions).transpose(0, 1)
    nearer = torch.stack([first if fraction <= 0.5 else second for fraction in fractions], dim=1)
    told = None if labels is None else labels[nearer].flatten()
    decoded = _decode(model, points.flatten(0, 1), told, batch_size).view(len(pairs), num_points, *images.shape[1:])
    errors = torch.cat([squared_errors(images[first], decoded[:, 0]), squared_errors(images[second], decoded[:, -1])])
    return Exploration(
        strips=tuple(
            (_caption(pair, None if labels is None else (int(labels[i]), int(labels[j]))), _strip(row))
            for pair, i, j, row in zip(pairs, first, second, decoded, strict=True)
        ),
        finding=f"{len(pairs)} pairs, {num_points} points each, {model.network_evaluations} DDIM steps: the ends have "
        f"a PSNR of {psnr(float(errors.mean())):.2f} dB over all, {psnr(float(errors.max())):.2f} dB for the worst",
    )


def _caption(pair: Pair, labels: Pair | None) -> str:
    images = f"{pair[0]} : {pair[1]}"
    if labels is None:
        return images
    return f"{images}, class {labels[0]}" + ("" if labels[0] == labels[1] else f" to {labels[1]}")


def compare_guidance(model: Adm, scales: Sequence[float], labels: Labels, *, seed: int, batch_size: int) -> Exploration:
    """The same seeds and labels at every scale of guidance, 0 being without; the guide itself judges the samples."""
    assert model.guide is not None  # options without a classifier are refused before
    wanted = torch.from_numpy(labels)
    strips, shares = [], []
    for scale in scales:
        images = _draw(_guided(model, scale), f"scale {scale:g}", wanted, seed, len(labels), batch_size)
        share = float((_recognised(model, images, batch_size) == wanted).double().mean())
        strips.append((f"scale {scale:g}" if scale else "unguided", _strip(images)))
        shares.append(f"{100 * share:.1f} % at {scale:g}")
    return Exploration(
        strips=tuple(strips),
        finding=f"{len(labels)} samples a scale, taken by the classifier for their label: {', '.join(shares)}",
    )


def _guided(model: Adm, scale: float) -> Adm:
    """The same networks under another scale; 0 takes the classifier away."""
    guided = copy.copy(model)
    guided.guide = copy.copy(model.guide) if scale else None
    if guided.guide is not None:
        guided.guide.scale = scale
    return guided


def _recognised(model: Adm, images: Tensor, batch_size: int) -> Tensor:
    """The class that the guide gives each image, at the process's first timestep, where there is next to no noise."""
    guide, timesteps = model.guide, model.sampler.diffusion.network_timesteps[:1]
    assert guide is not None
    with torch.inference_mode():
        batches = (from_uint8(batch.to(model.device)) for batch in torch.split(images, batch_size))
        return torch.cat([guide.classify(batch, guide.embedding(timesteps)).argmax(dim=1).cpu() for batch in batches])


def compare_temperatures(
    model: Adm,
    of: Temperature,
    temperatures: Sequence[float],
    labels: Labels | None,
    *,
    num_images: int,
    seed: int,
    batch_size: int,
) -> Exploration:
    """The same seeds at reduced temperatures of the noise that steps add, or of epsilon (Figure 11)."""
    cooled = [_at_temperature(model, of, temperature) for temperature in temperatures]
    told = None if labels is None else torch.from_numpy(labels)
    strips, details = [], []
    for temperature, colder in zip(temperatures, cooled, strict=True):
        name = f"temperature {temperature:g}"
        images = _draw(colder, name, told, seed, num_images, batch_size)
        strips.append((name, _strip(images)))
        details.append(f"{neighbour_difference(images):.1f} at {temperature:g}")
    return Exploration(
        strips=tuple(strips),
        finding=f"{num_images} samples a temperature of {of}; "
        f"mean difference of neighbouring pixels, in levels: {', '.join(details)}",
    )


def _at_temperature(model: Adm, of: Temperature, temperature: float) -> Adm:
    change: dict[str, Any] = {f"{of}_temperature": temperature}
    with bad_input(f"--of {of}"):
        cooled = Adm(replace(model.options, **change), model.sampler.network, model.sampler.diffusion, model.guide)
        cooled.sampler.denoiser(None)  # refuses a temperature of epsilon where the model predicts another thing
    return cooled


def neighbour_difference(images: Tensor) -> float:
    """Mean absolute difference, in levels, between uint8 pixels (B, 3, H, W) beside or below each other."""
    levels = images.double()
    across, down = levels.diff(dim=3).abs(), levels.diff(dim=2).abs()
    return float((across.sum() + down.sum()) / (across.numel() + down.numel()))


def _draw(model: Adm, title: str, labels: Tensor | None, seed: int, num_images: int, batch_size: int) -> Tensor:
    seeds = image_seeds(seed, range(num_images))

    def work(batch: slice, evaluated: Callable[[], None]) -> Tensor:
        return model.sample(seeds[batch], _of(labels, batch), evaluated)

    return _in_batches(title, model, num_images, batch_size, work)
