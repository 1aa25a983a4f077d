"""Named configurations: the digits' and OpenAI's."""

from dataclasses import replace

from generators.adm.config import AdmConfig, GuideConfig, UpsamplerConfig
from generators.adm.preset_row import Preset, PresetSampling
from generators.adm.released import RELEASED
from generators.configuration import unknown_name
from generators.diffusion.process import DiffusionConfig
from generators.training.config import TrainingConfig
from generators.unet.config import ClassifierConfig, SuperResolutionConfig, UNetConfig

__all__ = ["PRESETS", "Preset", "PresetSampling", "preset"]

COSINE = DiffusionConfig(schedule="cosine")
DIGITS_TRAINING = TrainingConfig(
    steps=2400, batch_size=32, learning_rate=2e-3, warmup_steps=100, annealing="cosine", ema_rate=0.998
)
DIGITS_CLASSIFIER_TRAINING = TrainingConfig(
    steps=600, batch_size=64, learning_rate=1e-3, annealing="cosine", weight_decay=0.05, ema_rate=0.99
)
LARGEST_ATTENTION = 8


def _digits(size: int) -> AdmConfig:
    model = UNetConfig(
        image_size=size, channels=32, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=tuple(side for side in (size, size // 2) if side <= LARGEST_ATTENTION),
        head_channels=32, num_classes=10,
    )  # fmt: skip
    return AdmConfig(model=model, diffusion=COSINE, training=DIGITS_TRAINING)


def _digits_classifier(size: int) -> GuideConfig:
    model = ClassifierConfig(
        image_size=size, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(size // 2,),
        head_channels=32, num_classes=10,
    )  # fmt: skip
    return GuideConfig(model=model, diffusion=COSINE, training=DIGITS_CLASSIFIER_TRAINING)


def _digits_upsampler() -> UpsamplerConfig:
    model = SuperResolutionConfig(
        low_resolution=8, image_size=16, channels=32, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(LARGEST_ATTENTION,), head_channels=32, num_classes=10,
    )  # fmt: skip
    return UpsamplerConfig(model=model, diffusion=COSINE, training=replace(DIGITS_TRAINING, steps=1200))


PRESETS = {
    "digits8": Preset(summary="ADM for 8x8 handwritten digits", config=_digits(8)),
    "digits8_classifier": Preset(summary="guides digits8", config=_digits_classifier(8)),
    "digits16": Preset(summary="ADM for 16x16 handwritten digits", config=_digits(16)),
    "digits16_classifier": Preset(summary="guides digits16", config=_digits_classifier(16)),
    "digits8_16_upsampler": Preset(summary="enlarges handwritten digits from 8x8 to 16x16", config=_digits_upsampler()),
    **RELEASED,
}


def preset(name: str) -> Preset:
    """A preset by its name; ValueError, with the nearest, where there is none."""
    if name not in PRESETS:
        raise ValueError(unknown_name("preset", name, PRESETS))
    return PRESETS[name]
