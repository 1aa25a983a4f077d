"""OpenAI's fifteen released checkpoints, named after their files (github.com/openai/guided-diffusion).

Networks are those of the release's README; training is that of Tables 11 to 13 of Dhariwal & Nichol 2021,
FID that of Tables 4 to 6, guidance scales those of Table 14.
"""

from dataclasses import replace
from typing import Any

from generators.adm.config import AdmConfig, GuideConfig, UpsamplerConfig
from generators.adm.preset_row import Preset, PresetSampling
from generators.diffusion.process import DiffusionConfig
from generators.training.config import TrainingConfig
from generators.unet.config import ClassifierConfig, SuperResolutionConfig, UNetConfig

COSINE = DiffusionConfig(schedule="cosine")
FOUR_HEADS: dict[str, Any] = {"heads": 4, "head_channels": None}
TRAINING = TrainingConfig(batch_size=256, learning_rate=1e-4, ema_rate=0.9999, ema_warmup=False, flip=True)
CLASSIFIER_TRAINING = TrainingConfig(  # annealing as in the README; the reference averages no classifier's weights
    batch_size=256, learning_rate=3e-4, annealing="linear", weight_decay=0.05, ema_rate=0.0, ema_warmup=False,
    crop="random", flip=True,  # random crops against overfitting: section 4.2
)  # fmt: skip
UNCONDITIONAL_256 = "fe93167087f7317b01c4b4261dc38d6303b8de63cf64d7994d1f946790cc6384"


def _imagenet(size: int, steps: int, **model: Any) -> AdmConfig:
    network = UNetConfig(**({"image_size": size, "channels": 256, "num_classes": 1000} | model))
    return AdmConfig(model=network, training=replace(TRAINING, steps=steps))


def _upsampler(low: int, size: int, steps: int, **model: Any) -> UpsamplerConfig:
    network = SuperResolutionConfig(low_resolution=low, image_size=size, channels=192, num_classes=1000, **model)
    return UpsamplerConfig(model=network, training=replace(TRAINING, steps=steps))


def _classifier(size: int, steps: int, **model: Any) -> GuideConfig:
    return GuideConfig(
        model=ClassifierConfig(image_size=size, **model), training=replace(CLASSIFIER_TRAINING, steps=steps)
    )


def _lsun(steps: int, dropout: float = 0.1) -> AdmConfig:
    network = UNetConfig(image_size=256, channels=256, dropout=dropout)
    return AdmConfig(model=network, training=replace(TRAINING, steps=steps))


def _guided(scale: float, classifier: str) -> PresetSampling:
    return PresetSampling(sampling_steps=250, guidance_scale=scale, classifier=classifier)


UNGUIDED_250 = PresetSampling(sampling_steps=250)
UNGUIDED_1000 = PresetSampling(sampling_steps=1000)

RELEASED = {
    "64x64_diffusion": Preset(
        summary="ADM of ImageNet 64x64",
        config=replace(
            _imagenet(64, 540_000, channels=192, num_res_blocks=3, dropout=0.1, attention_order="qkv-major"),
            diffusion=COSINE,
            training=replace(TRAINING, steps=540_000, batch_size=2048, learning_rate=3e-4),
        ),
        sampling=_guided(1.0, "64x64_classifier"),
        published_fid=2.07,
        published="ADM (dropout), unguided, 250 steps; Table 5",
        tensors_sha256="40271b72ad5de28c5535dae1d187f2f685d54cbc82286fa767a055f6221660f1",
    ),
    "64x64_classifier": Preset(
        summary="guides 64x64_diffusion",
        config=replace(
            _classifier(64, 300_000, num_res_blocks=4),
            diffusion=COSINE,
            training=replace(CLASSIFIER_TRAINING, steps=300_000, batch_size=1024, learning_rate=6e-4, weight_decay=0.2),
        ),
        tensors_sha256="396fdbdd8fe8469fa6606d8b40018b34a8464b47172f0df5876f7cc21e014825",
    ),
    "128x128_diffusion": Preset(
        summary="ADM of ImageNet 128x128",
        config=_imagenet(128, 4_360_000, **FOUR_HEADS),
        sampling=_guided(0.5, "128x128_classifier"),
        published_fid=2.97,
        published="ADM-G, scale 0.5, 250 steps; Tables 5 and 14",
        tensors_sha256="acf0fda1a78ff280a0af90bd966229ba309ad26ff2434a220fc11d604a8f751b",
    ),
    "128x128_classifier": Preset(
        summary="guides 128x128_diffusion",
        config=_classifier(128, 300_000),
        tensors_sha256="17a295211f77efb8a0b454ea29688687965c21b22562000d39a882dbcd21f7bf",
    ),
    "256x256_diffusion": Preset(
        summary="ADM of ImageNet 256x256",
        config=_imagenet(256, 1_980_000),
        sampling=_guided(1.0, "256x256_classifier"),
        published_fid=4.59,
        published="ADM-G, scale 1.0, 250 steps; Tables 4, 5 and 14",
        tensors_sha256="d861e8fba157265224387f7873c8e1a1a11d93e0334de75603f96814ce1e0074",
    ),
    "256x256_diffusion_uncond": Preset(
        summary="ADM of ImageNet 256x256, unconditional",
        config=_imagenet(256, 2_000_000, num_classes=None),  # steps: caption of Table 4
        sampling=_guided(10.0, "256x256_classifier"),
        published_fid=12.0,
        published="unconditional ADM-G, scale 10.0, 250 steps; Table 4",
        tensors_sha256=UNCONDITIONAL_256,
    ),
    "256x256_classifier": Preset(
        summary="guides 256x256_diffusion and 256x256_diffusion_uncond",
        config=_classifier(256, 500_000),
        tensors_sha256="45ff8351dfa42a32eb599faab91d1e7bc9d3ce6a6e8003b2ebafce9bc51c95f8",
    ),
    "512x512_diffusion": Preset(
        summary="ADM of ImageNet 512x512",
        config=_imagenet(512, 1_940_000),
        sampling=_guided(4.0, "512x512_classifier"),
        published_fid=7.72,
        published="ADM-G, scale 4.0, 250 steps; Tables 5 and 14",
        tensors_sha256="1e27698a1c14eeff4e189c5416445dec3fa7c638ccd929333df4b355c9046934",
    ),
    "512x512_classifier": Preset(
        summary="guides 512x512_diffusion",
        config=_classifier(512, 500_000),
        tensors_sha256="c63bec1296488c9d4de007d84a502fdd67acbc0835feaf9b0c1f6bd2f26c2108",
    ),
    "64_256_upsampler": Preset(
        summary="ADM's upsampler of ImageNet, 64x64 to 256x256",
        config=_upsampler(64, 256, 500_000, **FOUR_HEADS),
        sampling=UNGUIDED_250,
        published_fid=3.94,
        published="ADM-G, ADM-U, 250 steps each; Table 6",
        tensors_sha256="49f2f641e45d36d2797b76dd25d5b80b418ed79edab80e26e88f6d349fd17a84",
    ),
    "128_512_upsampler": Preset(
        summary="ADM's upsampler of ImageNet, 128x128 to 512x512",
        config=_upsampler(128, 512, 1_050_000, attention_resolutions=(32, 16)),
        sampling=UNGUIDED_250,
        published_fid=3.85,
        published="ADM-G, ADM-U, 250 steps each; Table 6",
        tensors_sha256="24589324a586c00457649709800cfdff34d4d1e9a9b6e1a350f0182df32c8188",
    ),
    "lsun_bedroom": Preset(
        summary="ADM of LSUN bedrooms 256x256",
        config=_lsun(500_000),
        sampling=UNGUIDED_1000,
        published_fid=1.9,
        published="ADM (dropout), 1000 steps; Tables 5 and 16",
        tensors_sha256=UNCONDITIONAL_256,
    ),
    "lsun_cat": Preset(
        summary="ADM of LSUN cats 256x256",
        config=_lsun(200_000),
        sampling=UNGUIDED_1000,
        published_fid=5.57,
        published="ADM (dropout), 1000 steps; Tables 5 and 16",
        tensors_sha256=UNCONDITIONAL_256,
    ),
    "lsun_horse": Preset(
        summary="ADM of LSUN horses 256x256",
        config=_lsun(250_000),
        sampling=UNGUIDED_1000,
        published_fid=2.57,
        published="ADM (dropout), 1000 steps; Tables 5 and 16",
        tensors_sha256=UNCONDITIONAL_256,
    ),
    "lsun_horse_nodropout": Preset(
        summary="ADM of LSUN horses 256x256, trained without dropout",
        config=_lsun(250_000, dropout=0.0),
        sampling=UNGUIDED_1000,
        published_fid=2.95,
        published="ADM, 1000 steps; Table 5",
        tensors_sha256=UNCONDITIONAL_256,
    ),
}
"""Every released checkpoint, by the stem of its file."""
