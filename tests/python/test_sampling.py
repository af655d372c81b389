"""Sampling settings: defaults, the file's values, ranges."""

import math

import pytest

from gemmule import SamplingParams


def test_defaults_are_gemmas() -> None:
    params = SamplingParams.resolve({})
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 64, 0.95, 0.0)
    assert 0 <= params.seed < 2**63


def test_file_values_come_before_defaults_and_arguments_before_both() -> None:
    stored = {"general.sampling.temp": 0.699999988079071, "general.sampling.top_k": 20, "general.name": "x"}
    found = SamplingParams.file_defaults(stored)
    assert found == {"temperature": 0.7, "top_k": 20}
    params = SamplingParams.resolve(found, top_k=0, seed=7)
    assert (params.temperature, params.top_k, params.seed) == (0.7, 0, 7)


def test_bad_file_values_are_ignored() -> None:
    assert SamplingParams.file_defaults({"general.sampling.top_p": 7.0, "general.sampling.temp": "hot"}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repeat_penalty", 0.0),
        ("seed", -1),
        ("seed", True),
        ("logit_bias", {3: math.inf}),
        ("logit_bias", {-3: 1.0}),
    ],
)
def test_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams.resolve({}, **{name: value})


def test_seeds_differ() -> None:
    assert SamplingParams.resolve({}).seed != SamplingParams.resolve({}).seed
