"""Likelihood of a data set under a diffusion model: the variational bound in bits per dimension, image by image."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adm_bench import progress
from adm_bench.errors import InputError, bad_input
from adm_bench.exploration import STEP_OPTIONS, choose_images, open_model, read_images, require_unset
from adm_bench.files import atomic_path
from adm_bench.images.dataset import Dataset
from adm_bench.images.npz import write_arrays
from adm_bench.records import Circumstances, measured
from generators.adm.config import AdmConfig
from generators.adm.generator import Adm
from generators.adm.networks import config_for
from generators.diffusion.likelihood import Likelihood, bits_per_dim
from generators.diffusion.noise import Stream, mix_seed
from generators.levels import from_uint8
from reports.records import Record

WITHOUT_EFFECT = (
    "sampler",
    "eta",
    "noise_temperature",
    "rounding",
    "classifier",
    "classifier_preset",
    "guidance_scale",
    "guidance_at",
)
NUM_PARTS = 4
UNIT = "bits/dim"

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MeasuredLikelihood:
    """The bound of N images and what it is made of, in bits per dimension unless said otherwise."""

    by_image: Mapping[str, Array]
    """(N,) each: `bits_per_dim`, the sum of `prior` and `vb_q0` to `vb_q3`; and `vb_step0`, which `vb_q0` contains.

    `vb_q0` is the sum of the bound's terms of the first quarter of the steps, where there is least noise.
    """
    terms: Mapping[str, NDArray[Any]]
    """Means over images, (steps,) each, the last step first, as OpenAI's image_nll gives them.

    `vb_terms`; `mse_terms`, of the noise, and `xstart_mse_terms`, of the image in [-1, 1]; and `timesteps`.
    """

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.by_image["bits_per_dim"])

    def mean(self, name: str) -> float:
        """Mean over images of one entry of `by_image`."""
        return float(self.by_image[name].mean())

    def standard_error(self, name: str) -> float:
        """Standard error of that mean; NaN for a single image."""
        if self.num_images == 1:
            return float("nan")
        return float(self.by_image[name].std(ddof=1) / np.sqrt(self.num_images))


def open_likelihood_model(weights: Path, options: Mapping[str, Any], device: torch.device) -> Adm:
    """An ADM on every step that it was trained with, unless the options say other steps.

    The number of steps that a preset suggests is for sampling, and not taken. InputError where an option has
    no effect on a likelihood.
    """
    require_unset(options, WITHOUT_EFFECT, "has no effect on a likelihood")
    with bad_input(weights):
        config = config_for(weights, options.get("preset"), "adm")
    assert isinstance(config, AdmConfig)  # config_for has checked it
    all_steps = {"sampling_steps": config.diffusion.num_timesteps}
    chosen = any(options.get(name) for name in STEP_OPTIONS)
    return open_model(weights, options if chosen else {**options, **all_steps}, device)


def measure_likelihood(
    model: Adm, dataset: Dataset, *, num_images: int | None, seed: int, batch_size: int
) -> MeasuredLikelihood:
    """The bound of a data set's images, or of the first `num_images` (see `choose_images`).

    The noise of an image depends on the seed and on its index in the data set alone, so neither the number
    of images nor the batch size changes what is measured for it. InputError where that is not finite.
    """
    indices = choose_images(dataset, num_images)
    by_image: list[dict[str, Array]] = []
    sums = np.zeros((3, model.network_evaluations))
    with progress.stage(f"likelihood {dataset.name}", len(indices), "images") as advance:
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            images, labels = read_images(dataset, batch)
            seeds = [mix_seed(seed, Stream.IMAGES, index) for index in batch]
            found = bits_per_dim(
                model.sampler.diffusion,
                model.sampler.denoiser(labels),
                from_uint8(images.to(model.device)),
                model.sampler.noise(seeds),
                clip=model.options.clip,
                evaluated=partial(advance, len(batch) / model.network_evaluations),
            )
            _require_finite(found, batch)
            by_image.append(_parts(found))
            sums += [_array(terms).sum(axis=0) for terms in (found.vb, found.epsilon_mse, found.x0_mse)]
    names = ("vb_terms", "mse_terms", "xstart_mse_terms")
    timesteps = np.array(model.sampler.diffusion.schedule.timesteps[::-1], np.int64)
    return MeasuredLikelihood(
        by_image={name: np.concatenate([parts[name] for parts in by_image]) for name in by_image[0]},
        terms={"timesteps": timesteps, **dict(zip(names, sums / len(indices), strict=True))},
    )


def _array(values: torch.Tensor) -> Array:
    return values.double().cpu().numpy()


def _require_finite(found: Likelihood, indices: list[int]) -> None:
    broken = [index for index, finite in zip(indices, found.total.isfinite().tolist(), strict=True) if not finite]
    if broken:
        raise InputError(f"the likelihood of image {broken[0]} is not finite; check the weights, or use precision fp32")


def _parts(found: Likelihood) -> dict[str, Array]:
    """Of each image, what is reported: (B,) each."""
    vb = _array(found.vb)[:, ::-1]  # from step 0 on
    num_steps = vb.shape[1]
    part_of_step = NUM_PARTS * np.arange(num_steps) // num_steps
    parts = {f"vb_q{part}": vb[:, part_of_step == part].sum(axis=1) for part in range(NUM_PARTS)}
    prior = _array(found.prior)
    return {"bits_per_dim": prior + vb.sum(axis=1), "prior": prior, "vb_step0": vb[:, 0].copy(), **parts}


def likelihood_records(found: MeasuredLikelihood, circumstances: Circumstances) -> list[Record]:
    """Mean and standard error of every part, with their circumstances."""
    values = {}
    for name in found.by_image:
        quantity = name if name == "bits_per_dim" else f"{name}_bits_per_dim"
        values[quantity] = found.mean(name)
        values[f"{quantity}_standard_error"] = found.standard_error(name)
    return [replace(record, unit=UNIT, higher_is_better=False) for record in measured(values, circumstances)]


def write_terms(found: MeasuredLikelihood, path: Path) -> None:
    """Write `terms` as one npz file, an array of each name."""
    with atomic_path(path) as temporary:
        write_arrays(temporary, found.terms)
