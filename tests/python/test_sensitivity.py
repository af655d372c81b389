"""Types for a wanted size: never above it, close below it, less measured error than the standard mixes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest

from gemmule import _core
from gemmule._convert import mixes, sensitivity
from gemmule._convert.image import ArrayRows, Image, Kv, TensorSpec
from gemmule._convert.sensitivity import _fill, _hull, _Option, choose_types
from gemmule._errors import FormatError


def _spec(name: str, *shape: int, seed: int = 0, keep: str | None = None, tail: float = 3.0) -> TensorSpec:
    n_rows = math.prod(shape[1:])

    def make() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        rng = np.random.default_rng(seed)
        return rng.standard_t(tail, (n_rows, shape[0])).astype(np.float32)

    return TensorSpec(name, shape, ArrayRows(name, n_rows, shape[0], make), keep)


def _image(n_layers: int = 4, width: int = 256) -> Image:
    tensors = [_spec("token_embd.weight", width, 128), _spec("output_norm.weight", width, keep="F32")]
    for i in range(n_layers):
        shapes = {
            "attn_q": (width, 48),
            "attn_k": (width, 16),
            "attn_v": (width, 16),
            "attn_output": (width, 40),
            "ffn_gate": (width, 80),
            "ffn_up": (width, 80),
            "ffn_down": (width, 72),
        }
        for j, (role, shape) in enumerate(shapes.items()):
            tensors.append(_spec(f"blk.{i}.{role}.weight", *shape, seed=10 * i + j, tail=3 + i))
        tensors.append(_spec(f"blk.{i}.attn_norm.weight", width, keep="F32"))
    metadata = (
        Kv("general.architecture", "string", "gemma4"),
        Kv("gemma4.block_count", "u32", n_layers),
        Kv("gemma4.attention.head_count", "u32", 4),
        Kv("gemma4.attention.head_count_kv", "u32", 1),
    )
    return Image(metadata, tuple(tensors))


def _size(image: Image, types: Mapping[str, str]) -> int:
    return mixes.types_bytes(image, types)  # every tensor here fills whole multiples of 32 bytes


@pytest.fixture(scope="module")
def encoder() -> _core.Encoder:
    return _core.Encoder()


@pytest.mark.parametrize("bpw", [3.1, 3.6, 4.0, 4.85, 5.5, 6.6, 8.0, 9.5])
def test_lands_just_under_the_target(encoder: _core.Encoder, bpw: float) -> None:
    image = _image()
    n_weights = sum(spec.n_elements for spec in image.tensors)
    types = choose_types(image, encoder, target_bpw=bpw)
    reached = 8 * _size(image, types) / n_weights
    # Between Q8_0 and BF16 one step of one of these few matrices is more than that.
    assert bpw * (0.995 if bpw < 8 else 0.98) < reached <= bpw
    assert types == choose_types(image, encoder, target_bytes=int(bpw * n_weights / 8))
    assert list(types) == [spec.name for spec in image.tensors]
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_rows_of_32(encoder: _core.Encoder) -> None:
    image = _image(width=160)
    n_weights = sum(spec.n_elements for spec in image.tensors)
    types = choose_types(image, encoder, target_bpw=5.0)
    assert 4.9 < 8 * _size(image, types) / n_weights <= 5.0
    assert types["blk.0.attn_q.weight"] in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16")


def _harm(image: Image, encoder: _core.Encoder, types: Mapping[str, str]) -> float:
    specs = [spec for spec in image.tensors if mixes.is_quantizable(spec)]
    harms = sensitivity._harms(image, specs, ())
    return sum(
        harms[spec.name]
        * sensitivity._errors(spec, encoder, [types[spec.name]], None, None)[types[spec.name]]
        for spec in specs
    )


@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"])
def test_less_harm_than_the_mix_of_the_same_size(encoder: _core.Encoder, mix: str) -> None:
    image = _image()
    standard = mixes.assign_types(image, mix)
    types = choose_types(image, encoder, target_bytes=_size(image, standard))
    assert _size(image, types) <= _size(image, standard)
    assert _harm(image, encoder, types) < _harm(image, encoder, standard)


def test_near_the_optimum_of_small_knapsacks() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        options = {
            f"t{i}": [
                _Option(f"{k}", int(size), float(harm))
                for k, (size, harm) in enumerate(
                    zip(np.cumsum(rng.integers(1, 9, 4)), np.sort(rng.random(4))[::-1], strict=True)
                )
            ]
            for i in range(5)
        }
        budget = int(rng.integers(40, 90))
        best = min(
            (
                sum(o.harm for o in choice)
                for choice in itertools.product(*options.values())
                if sum(o.n_bytes for o in choice) <= budget
            ),
            default=None,
        )
        chosen = _fill(options, budget)
        if best is None:
            assert chosen is None
            continue
        assert chosen is not None
        assert sum(o.n_bytes for o in chosen.values()) <= budget
        assert sum(o.harm for o in chosen.values()) <= best + 0.5  # one step of one tensor


def test_hull_is_convex() -> None:
    points = [(1, 9.0), (2, 8.9), (3, 4.0), (4, 5.0), (6, 3.0), (7, 0.5), (9, 0.5)]
    corners = _hull([_Option(str(i), size, harm) for i, (size, harm) in enumerate(points)])
    assert [(o.n_bytes, o.harm) for o in corners] == [(1, 9.0), (3, 4.0), (7, 0.5)]


def test_same_types_for_any_threads(encoder: _core.Encoder) -> None:
    image = _image(3)
    one = choose_types(image, _core.Encoder(1), target_bpw=4.5)
    assert one == choose_types(image, _core.Encoder(3), target_bpw=4.5)
    assert one == choose_types(image, encoder, target_bpw=4.5)


def test_targets_out_of_reach(encoder: _core.Encoder) -> None:
    image = _image(2)
    for bpw in (0.5, 2.0, 17.0):
        with pytest.raises(ValueError, match=r"cannot be reached: this model takes 2\.7.* to 16\.0"):
            choose_types(image, encoder, target_bpw=bpw)
    with pytest.raises(ValueError, match=r"1,000 bytes cannot be reached: .* bytes\.$"):
        choose_types(image, encoder, target_bytes=1000)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a positive number"):
            choose_types(image, encoder, target_bpw=bad)
    for both in ({}, {"target_bpw": 4.0, "target_bytes": 100}):
        with pytest.raises(ValueError, match="either a size or bits per weight"):
            choose_types(image, encoder, **both)  # type: ignore[arg-type]


def test_the_ends_of_the_range_are_reached(encoder: _core.Encoder) -> None:
    image = _image(2)
    quantized = [spec.name for spec in image.tensors if mixes.is_quantizable(spec)]
    for type_name in ("Q2_K", "BF16"):
        types = {spec.name: "F32" for spec in image.tensors} | dict.fromkeys(quantized, type_name)
        assert choose_types(image, encoder, target_bytes=_size(image, types)) == types


def test_overrides_are_not_up_for_choice(encoder: _core.Encoder) -> None:
    image = _image(3)
    types = choose_types(
        image, encoder, target_bpw=4.5, overrides=[("attn_q", "Q8_0"), (r"blk\.1\.", "Q6_K")]
    )
    assert types["blk.1.attn_q.weight"] == "Q8_0"
    assert types["blk.1.ffn_up.weight"] == "Q6_K"
    with pytest.raises(ValueError, match="matches no tensor"):
        choose_types(image, encoder, target_bpw=4.5, overrides=[("nothing", "Q8_0")])


def test_importance_decides_where_the_bits_go(encoder: _core.Encoder) -> None:
    image = _image(4)
    plain = choose_types(image, encoder, target_bpw=4.2)
    importance = {"blk.2.ffn_up.weight": np.ones((1, 256), np.float32)}
    importance["blk.2.ffn_up.weight"][0, 7] = 1e6  # one column is all that counts, and is encoded well
    found = choose_types(image, encoder, target_bpw=4.2, importance=importance)
    assert found != plain
    everywhere = {spec.name: np.ones((1, spec.shape[0]), np.float32) for spec in image.tensors}
    assert choose_types(image, encoder, target_bpw=4.2, importance=everywhere) != plain


def test_experts_are_measured_with_their_own_importance(encoder: _core.Encoder) -> None:
    image = _image(1)
    stack = _spec("blk.0.ffn_down_exps.weight", 256, 32, 4, seed=3)
    image = Image((*image.metadata, Kv("gemma4.expert_count", "u32", 4)), (*image.tensors, stack))
    importance = {stack.name: np.ones((4, 256), np.float32)}
    calls: list[tuple[int, int, str]] = []
    types = choose_types(
        image, encoder, target_bpw=4.5, importance=importance, progress=lambda *args: calls.append(args)
    )
    assert types == choose_types(image, encoder, target_bpw=4.5)
    assert calls[-1][0] == calls[-1][1] > 0


def test_numbers_that_are_not_finite(encoder: _core.Encoder) -> None:
    image = _image(1)
    bad = ArrayRows("model.safetensors: up", 80, 256, lambda: np.full((80, 256), np.nan, np.float32))
    tensors = [
        TensorSpec(spec.name, spec.shape, bad) if "ffn_up" in spec.name else spec for spec in image.tensors
    ]
    with pytest.raises(FormatError, match=r"model.safetensors: up: holds numbers that are not finite"):
        choose_types(Image(image.metadata, tuple(tensors)), encoder, target_bpw=4.5)


def test_zero_matrices_cost_nothing(encoder: _core.Encoder) -> None:
    image = _image(2)
    zero = ArrayRows("zero", 80, 256, lambda: np.zeros((80, 256), np.float32))
    tensors = [
        TensorSpec(spec.name, spec.shape, zero) if spec.name == "blk.0.ffn_up.weight" else spec
        for spec in image.tensors
    ]
    types = choose_types(Image(image.metadata, tuple(tensors)), encoder, target_bpw=4.5)
    assert types["blk.0.ffn_up.weight"] == "Q2_K"


def test_stacks_of_experts_count_as_the_dense_matrix_beside_them() -> None:
    image = _image(3)
    stack = _spec("blk.1.ffn_down_exps.weight", 256, 32, 4)
    specs = [spec for spec in (*image.tensors, stack) if mixes.is_quantizable(spec)]
    harms = sensitivity._harms(image, specs, ())
    assert harms["blk.1.ffn_down_exps.weight"] == harms["blk.1.ffn_down.weight"] > 0
    assert 2 * harms["blk.1.ffn_down.weight"] == pytest.approx(sensitivity._HARM["ffn_down"].plain[1])
    assert harms["token_embd.weight"] > 10
    untied = [*specs, _spec("output.weight", 256, 128)]
    apart = sensitivity._harms(Image(image.metadata, tuple(untied)), untied, ())
    assert apart["token_embd.weight"] + apart["output.weight"] == pytest.approx(harms["token_embd.weight"])
