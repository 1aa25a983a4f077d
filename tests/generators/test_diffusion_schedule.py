"""Which steps a process keeps, and the one line where there are none such."""

import re
from typing import Any

import pytest

from generators.diffusion.process import Diffusion, DiffusionConfig
from generators.diffusion.schedule import Respacing, kept_timesteps


@pytest.mark.parametrize(
    ("respacing", "expected"),
    [
        (None, tuple(range(20))),
        (3, (0, 10, 19)),
        ("3", (0, 10, 19)),
        ((2, 3), (0, 9, 10, 14, 19)),
        ([2, 3], (0, 9, 10, 14, 19)),
        ("2,3", (0, 9, 10, 14, 19)),
        ("0,1", (10,)),
        ("ddim4", (0, 5, 10, 15)),
        ("ddim20", tuple(range(20))),
    ],
)
def test_forms_of_respacing(respacing: Respacing, expected: tuple[int, ...]) -> None:
    assert kept_timesteps(20, respacing) == expected


FORMS = "none of the forms '250' (evenly), '90,60,60,20,20' (in equal sections) and 'ddim25' (a stride)"


@pytest.mark.parametrize(
    ("total", "respacing", "expected"),
    [
        (1000, "fast", f"respacing 'fast' has {FORMS}"),
        (1000, "10,,10", f"respacing '10,,10' has {FORMS}"),
        (1000, "ddim", f"respacing 'ddim' has {FORMS}"),
        (
            1000,
            "ddim300",
            "ddim cannot keep 300 of 1000 steps with an integer stride; the nearest it can are 250 and 334",
        ),
        (1000, "ddim1", "ddim cannot keep 1 of 1000 steps with an integer stride; the nearest it can are 2 and 3"),
        (1000, 2000, "cannot keep 2000 of the 1000 steps; the nearest possible is 1000"),
        (1000, -2, "cannot keep -2 of the 1000 steps; the nearest possible is 2"),
        (10, (3, 5, 2), "cannot keep 5 of the 3 steps in section 2 of 3; the nearest possible is 3"),
        (10, (), "a respacing into no sections keeps no steps"),
    ],
)
def test_impossible_respacings_name_the_nearest(total: int, respacing: Respacing, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        kept_timesteps(total, respacing)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "plain"), [("", None), ("10, 20", "10,20"), (" 250", 250), ("ddim 25", "ddim25")])
def test_texts_are_taken_as_the_reference_takes_them(text: str, plain: Respacing) -> None:
    assert kept_timesteps(1000, text) == kept_timesteps(1000, plain)


@pytest.mark.parametrize("respacing", [2.5, ("a",), "25ddim", "1;2"])
def test_other_forms_are_refused(respacing: Any) -> None:
    with pytest.raises(ValueError, match="has none of the forms '250'"):
        kept_timesteps(1000, respacing)


@pytest.mark.parametrize(
    ("respacing", "expected"),
    [(1, "cannot keep 1 of the 1000 steps; the nearest possible is 2"), ("0,0", "0 of the 1000 steps")],
)
def test_a_process_has_two_steps(respacing: Respacing, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Diffusion(DiffusionConfig(), respacing=respacing)


def test_explicit_timesteps_must_exist() -> None:
    assert Diffusion.with_timesteps(DiffusionConfig(), (5, 3, 999)).schedule.timesteps == (3, 5, 999)
    with pytest.raises(ValueError, match="timesteps run from 5 to 1000; expected 0 to 999"):
        Diffusion.with_timesteps(DiffusionConfig(), (5, 1000))


def test_the_keywords_agree() -> None:
    config = DiffusionConfig(schedule="cosine")
    for keywords, respacing in (({"num_steps": 25}, "25"), ({"num_steps": 25, "spacing": "ddim"}, "ddim25")):
        ours, theirs = Diffusion(config, **keywords), Diffusion(config, respacing=respacing)
        assert ours.schedule.timesteps == theirs.schedule.timesteps
        assert ours.abar.equal(theirs.abar)
    with pytest.raises(ValueError, match="num_steps is 25 and respacing 'ddim25'; give one of them"):
        Diffusion(config, num_steps=25, respacing="ddim25")


def test_respacing_keeps_the_noise_levels() -> None:
    config = DiffusionConfig()
    whole, few = Diffusion(config), Diffusion(config, respacing="10,15,20")
    assert few.abar.allclose(whole.abar[list(few.schedule.timesteps)], rtol=1e-6, atol=0)
