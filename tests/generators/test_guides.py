"""Which classifiers may guide a model, and which timesteps they are told."""

from typing import Any

import pytest
import torch
from torch import Tensor

from generators.adm.config import AdmConfig, GuideConfig, SamplingConfig
from generators.adm.generator import Adm, ClassifierGuide
from generators.adm.loading import respaced
from generators.adm.networks import build_network
from generators.adm.presets import PRESETS
from generators.configuration import with_changes
from generators.unet.classifier import Classifier
from generators.unet.unet import UNet

CPU = torch.device("cpu")


def configs(model: dict[str, Any], classifier: dict[str, Any]) -> tuple[AdmConfig, GuideConfig]:
    config = with_changes(PRESETS["digits8"].config, model)
    guide = with_changes(PRESETS["digits8_classifier"].config, classifier)
    assert isinstance(config, AdmConfig)
    assert isinstance(guide, GuideConfig)
    return config, guide


@pytest.mark.parametrize(
    ("model", "classifier", "expected"),
    [
        (
            {},
            {"diffusion.schedule": "linear"},
            "the classifier's schedule is linear, the model's is cosine; guide with",
        ),
        (
            {"diffusion.num_timesteps": 500},
            {},
            "the classifier's num_timesteps is 1000, the model's is 500; guide with",
        ),
        ({"diffusion.rescale_timesteps": True}, {}, "classifier's rescale_timesteps is False, the model's is True; "),
        ({}, {"model.num_classes": 7}, "the classifier's num_classes is 7, the model's is 10; guide with"),
        (
            {},
            {"model.image_size": 16, "model.attention_resolutions": [8]},
            "the classifier's image_size is 16, the model's is 8; guide with",
        ),
    ],
)
def test_a_classifier_of_other_noise_or_images_is_refused_in_one_line(
    model: dict[str, Any], classifier: dict[str, Any], expected: str
) -> None:
    options = SamplingConfig(classifier_preset="digits8_classifier", guidance_scale=1.0)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        Adm.check(options, *configs(model, classifier))
    assert expected in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"model.num_classes": None}, {"diffusion.loss": "rescaled-hybrid"}])
def test_what_does_not_concern_a_classifier_may_differ(changes: dict[str, Any]) -> None:
    options = SamplingConfig(classifier_preset="digits8_classifier", guidance_scale=1.0, sampling_steps=7)
    Adm.check(options, *configs(changes, {"training.steps": 3, "model.channels": 64}))


@pytest.mark.parametrize("rescale", [False, True])
def test_a_guide_on_fewer_steps_is_told_the_timesteps_it_was_trained_on(rescale: bool) -> None:
    """As in training, where it sees every one of them."""
    changes = {"diffusion.num_timesteps": 50, "diffusion.rescale_timesteps": rescale}
    config, guide_config = configs(changes, changes)
    options = SamplingConfig(classifier_preset="digits8_classifier", guidance_scale=1.0, sampling_steps=5)
    diffusion = respaced(config.diffusion, options, CPU)
    network, classifier = build_network(config), build_network(guide_config)
    assert isinstance(network, UNet)
    assert isinstance(classifier, Classifier)
    for net in (network, classifier):
        net.eval().requires_grad_(requires_grad=False)
    guide = ClassifierGuide(classifier, diffusion, 1.0, compiled=False)
    told: list[Tensor] = []

    def record(x: Tensor, embedding: Tensor) -> Tensor:
        told.append(embedding)
        return classifier.classify(x, embedding)

    guide.classify = record
    Adm(options, network, diffusion, guide).sample([0, 1], torch.tensor([3, 4]))
    trained_on = torch.tensor([49.0, 37.0, 24.0, 12.0, 0.0]) * (20 if rescale else 1)
    torch.testing.assert_close(torch.cat(told), classifier.time_embedding(trained_on))
