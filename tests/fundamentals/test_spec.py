"""What a job's spec may say, and how it is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import SpecError
from models.spec import ArmSpec, GenerationSpec, SamplingParams

NAMES = st.text(alphabet="abcXYZ-_./09é", min_size=1, max_size=12)
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(1, 1_000_000),
        "temperature": st.floats(0, 100),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(0, 10**6),
        "min_p": st.floats(0, 1, exclude_max=True),
        "stop": st.lists(st.text(min_size=1, max_size=20), max_size=16),
        "seed": st.integers(0, 2**63 - 1),
        "ignore_eos": st.booleans(),
    },
)
ARMS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "ref": st.text(min_size=1, max_size=20)},
        optional={"weight": st.floats(-1e4, 1e4), "template": st.none() | st.text(max_size=20)},
    ),
    max_size=4,
    unique_by=lambda arm: arm["name"],
)
SPECS = st.fixed_dictionaries(
    {"base": st.text(min_size=1, max_size=20)},
    optional={
        "arms": ARMS,
        "sampling": SAMPLING,
        "samples": st.integers(1, 1024),
        "system": st.none() | st.text(max_size=20),
        "raw": st.booleans(),
        "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def with_arm(**fields: Any) -> dict[str, Any]:
    return {"base": "b", "arms": [{"name": "a", "ref": "r", **fields}]}


def with_sampling(**fields: Any) -> dict[str, Any]:
    return {"base": "b", "sampling": fields}


def test_only_the_base_is_required() -> None:
    spec = GenerationSpec.parse({"base": "some/model"})
    assert spec.arms == ()
    assert (spec.samples, spec.system, spec.raw, spec.dtype) == (1, None, False, "auto")
    assert spec.sampling == SamplingParams()


def test_defaults_sample_the_distribution_as_it_is() -> None:
    sampling = SamplingParams()
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (1.0, 0, 1.0, 0.0)
    assert (sampling.stop, sampling.ignore_eos, sampling.seed) == ((), False, 0)


def test_an_arm_weighs_one_by_default() -> None:
    assert ArmSpec(name="a", ref="r").weight == 1.0


@settings(deadline=None, derandomize=True)
@given(SPECS)
def test_survives_json(fields: dict[str, Any]) -> None:
    spec = GenerationSpec.parse(fields)
    assert GenerationSpec.parse(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*GenerationSpec.model_fields, "other"]), JSON, max_size=5))
def test_whatever_json_says_is_a_spec_or_a_spec_error(fields: dict[str, Any]) -> None:
    try:
        GenerationSpec.parse(fields)
    except SpecError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "base"),
        ({"base": ""}, "base"),
        ({"base": None}, "base"),
        ({"base": "b", "colour": "red"}, "colour"),
        ({"base": "b", "samples": 0}, "samples"),
        ({"base": "b", "samples": 1025}, "samples"),
        ({"base": "b", "samples": "many"}, "samples"),
        ({"base": "b", "system": 3}, "system"),
        ({"base": "b", "raw": "perhaps"}, "raw"),
        ({"base": "b", "dtype": "int8"}, "dtype"),
        ({"base": "b", "arms": "a"}, "arms"),
        ({"base": "b", "arms": [{"ref": "r"}]}, "arms.0.name"),
        ({"base": "b", "arms": [{"name": "a"}]}, "arms.0.ref"),
        (with_arm(ref=""), "arms.0.ref"),
        (with_arm(name=""), "arms.0.name"),
        (with_arm(name="two words"), "arms.0.name"),
        (with_arm(name="a=b"), "arms.0.name"),
        (with_arm(weight="heavy"), "arms.0.weight"),
        (with_arm(weight=None), "arms.0.weight"),
        (with_arm(weight=float("nan")), "arms.0.weight"),
        (with_arm(weight=float("inf")), "arms.0.weight"),
        (with_arm(weight=10_001), "arms.0.weight"),
        (with_arm(template=1), "arms.0.template"),
        (with_arm(alpha=1), "arms.0.alpha"),
        (with_sampling(max_new_tokens=0), "sampling.max_new_tokens"),
        (with_sampling(max_new_tokens=1.5), "sampling.max_new_tokens"),
        (with_sampling(temperature=-0.1), "sampling.temperature"),
        (with_sampling(temperature=float("nan")), "sampling.temperature"),
        (with_sampling(temperature=float("inf")), "sampling.temperature"),
        (with_sampling(top_p=0), "sampling.top_p"),
        (with_sampling(top_p=1.01), "sampling.top_p"),
        (with_sampling(top_p=float("nan")), "sampling.top_p"),
        (with_sampling(top_k=-1), "sampling.top_k"),
        (with_sampling(top_k=2**31), "sampling.top_k"),
        (with_sampling(min_p=1), "sampling.min_p"),
        (with_sampling(min_p=-0.1), "sampling.min_p"),
        (with_sampling(stop=[""]), "sampling.stop.0"),
        (with_sampling(stop=["\ud800"]), "sampling.stop.0"),
        (with_sampling(stop=[1]), "sampling.stop.0"),
        (with_sampling(stop=["x"] * 17), "sampling.stop"),
        (with_sampling(seed=-1), "sampling.seed"),
        (with_sampling(seed=2**63), "sampling.seed"),
        (with_sampling(ignore_eos="maybe"), "sampling.ignore_eos"),
        (with_sampling(beam=4), "sampling.beam"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError) as refused:
        GenerationSpec.parse(fields)
    message = str(refused.value)
    assert message.startswith(f"{named}: ")
    assert "\n" not in message


def test_every_wrong_field_is_named_in_one_line() -> None:
    with pytest.raises(SpecError) as refused:
        GenerationSpec.parse({"samples": 0, "sampling": {"top_p": 2}})
    assert [part.split(":")[0] for part in str(refused.value).split("; ")] == ["base", "sampling.top_p", "samples"]


def test_two_arms_of_one_name_are_refused() -> None:
    arms = [{"name": "a", "ref": "r"}, {"name": "b", "ref": "r"}, {"name": "a", "ref": "s"}]
    with pytest.raises(SpecError, match="two ARMs are named 'a'"):
        GenerationSpec.parse({"base": "b", "arms": arms})


def test_values_are_not_repeated_in_errors() -> None:
    with pytest.raises(SpecError) as refused:
        GenerationSpec.parse(with_sampling(stop=["secret" * 1000]))
    assert "secret" not in str(refused.value)


def test_is_immutable() -> None:
    spec = GenerationSpec.parse({"base": "b"})
    with pytest.raises(ValueError, match="frozen"):
        spec.samples = 3
