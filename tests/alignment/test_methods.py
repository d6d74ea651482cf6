"""Fronts that guided decoding draws, on tiny models."""

from dataclasses import replace

import pytest

from benchmarks.alignment.cache import Cache
from benchmarks.alignment.methods import Inputs, Methods
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.prompts import Prompt
from tests.tiny_models import make_model


@pytest.fixture
def relative(tiny_base, tmp_path):
    def run(arm):
        plan = replace(Plan(), relative=(2.0,), new_tokens=8)
        prompts = [Prompt(index, f"p{index}", f"question {index}") for index in range(3)]
        methods = Methods(Inputs(str(tiny_base), {"positive": arm}), plan, prompts, Cache(tmp_path / "cache"), tmp_path)
        (point,) = methods.relative("relative")
        return point

    return run


def test_relative_to_the_base_the_base_as_an_arm_is_no_guidance(relative, tiny_base):
    point = relative(tiny_base)

    assert point.strength == "positive=2 base=-2"
    assert point.values["kl"] == pytest.approx(0.0, abs=1e-3)


def test_relative_to_the_base_another_arm_guides(relative, tmp_path):
    assert abs(relative(make_model(tmp_path / "arm", seed=5, sharpness=1.0)).values["kl"]).max() > 0.1
