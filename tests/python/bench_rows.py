"""Rows of made-up measurements with known differences, for the tests of the benchmark harness."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmule._bench.record import timed

Row = dict[str, Any]


def base_row(name: str = "a.gguf", **more: Any) -> Row:
    """What a real head has, without a file."""
    return {
        "build_commit": "0123abcd", "cpu_info": "a processor", "backends": "CPU", "model_filename": name,
        "model_type": f"gemma4 1M {name}", "model_size": 600_000_000, "model_n_params": 1_000_000,
        "n_threads": 2, "type_k": "f16", "type_v": "f16", "gm_engine": "gemmule", "gm_version": "0.1.0",
        "gm_isa": "avx2", "gm_cpu_flags": "avx2 fma", "gm_cores": 2, "gm_memory": 16_000_000_000,
        "gm_system": "Linux x86_64", "gm_quantization": name.partition(".")[0].upper(), "gm_packed": "auto",
        "gm_sha256": "ff" * 32, "gm_session": "1", "gm_clean": True, "gm_yardstick": [[10.0, 1.0]] * 5,
        **more,
    }  # fmt: skip


def speed_row(seconds: float, *, seed: int = 0, noise: float = 0.01, rounds: int = 5, **more: Any) -> Row:
    """Single tokens that take about so long for 128 of them."""
    tests = {key: more.pop(key) for key in ("n_prompt", "n_gen", "n_depth") if key in more} or {"n_gen": 128}
    rng = np.random.default_rng(seed)
    samples = seconds * np.exp(noise * rng.standard_normal(rounds))
    test = {"test": more.pop("test")} if "test" in more else {}
    return timed(base_row(**more), samples.tolist(), **tests, **test)


def quality_row(kl: float, *, seed: int = 0, windows: int = 16, loss: float = 3.0, **more: Any) -> Row:
    """Windows whose difficulty is the same for every file, with a mean divergence of about `kl`."""
    hard = np.random.default_rng(1).lognormal(0, 0.5, windows)
    own = 1 + 0.02 * np.random.default_rng(seed).standard_normal(windows)
    kls, losses = kl * hard * own, loss * hard**0.1 + kl
    return {
        **base_row(**more), "gm_kind": "quality", "test_time": "2026-01-01T00:00:00Z", "gm_text": "all",
        "gm_n_ctx": 512, "gm_text_sha256": "aa", "gm_reference_sha256": "bb", "gm_positions": 255 * windows,
        "gm_samples_nll": losses.tolist(), "gm_samples_kl": kls.tolist(), "gm_samples_same": [0.9] * windows,
        "gm_ppl": float(np.exp(losses.mean())), "gm_ppl_error": 0.1, "gm_kl_mean": float(kls.mean()),
        "gm_kl_mean_error": 0.05 * kl, "gm_kl_median": kl / 2, "gm_kl_median_error": 0.02 * kl,
        "gm_kl_99": 5 * kl, "gm_kl_99_error": 0.3 * kl, "gm_kl_999": 9 * kl, "gm_kl_999_error": kl,
        "gm_same_top": 0.9, "gm_same_top_error": 0.01, "gm_ln_ppl_ratio": kl / 3,
        "gm_ln_ppl_ratio_error": kl / 9, "gm_dp_rms": 0.05, "gm_dp_rms_error": 0.001,
    }  # fmt: skip


def memory_row(n_ctx: int, **more: Any) -> Row:
    """A process that takes a little less than planned."""
    return {
        **base_row(**more), "gm_kind": "memory", "test_time": "2026-01-01T00:00:00Z", "gm_n_ctx": n_ctx,
        "gm_file": 600_000_000, "gm_planned": 700_000_000 + 1000 * n_ctx, "gm_planned_kv": 1000 * n_ctx,
        "gm_planned_weights": 600_000_000, "gm_planned_rest": 100_000_000, "gm_kv_bytes": 1000 * n_ctx,
        "gm_kv_used_bytes": 1000 * n_ctx, "gm_before": 40_000_000, "gm_peak_rss": 690_000_000 + 1000 * n_ctx,
        "gm_uss": 100_000_000,
    }  # fmt: skip
