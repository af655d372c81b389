"""The charts of a report: each draws its rows into the axes it is given and returns those it used.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gemmule._bench.formats import of_kind
from gemmule._bench.quality import ALL
from gemmule._bench.quality_report import summary_rows
from gemmule._bench.record import Row, describe_test

__all__ = [
    "draw_categories",
    "draw_depth",
    "draw_drafting",
    "draw_memory",
    "draw_roofline",
    "draw_size_quality",
    "draw_tokens",
    "pareto",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_GB = 1e9
_MEMORIES = (8, 12, 16, 24)  # GB of usual machines


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of points where less of both is better, the indices that no other one beats, by the first number."""
    best, kept = float("inf"), []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            kept.append(i)
    return kept


def _label(row: Row) -> str:
    engine = row.get("gm_engine", "gemmule")
    name = str(row.get("gm_quantization") or row["model_type"])
    return name if engine == "gemmule" else f"{name} {engine}"


def draw_size_quality(axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = [row for row in summary_rows(rows) if row.get("gm_kl_mean", 0) > 0]
    if not used:
        return []
    sizes = [row["model_size"] / _GB for row in used]
    values = [row["gm_kl_mean"] for row in used]
    errors = [2 * row["gm_kl_mean_error"] for row in used]
    axes.errorbar(sizes, values, yerr=errors, fmt="o", color=COLOURS[0], capsize=3, zorder=3)
    front = pareto(list(zip(sizes, values, strict=True)))
    axes.plot(
        [sizes[i] for i in front], [values[i] for i in front], "--", color=COLOURS[1],
        label="the best of their size",
    )  # fmt: skip
    for row, x, y in zip(used, sizes, values, strict=True):
        axes.annotate(_label(row), (x, y), xytext=(5, 5), textcoords="offset points")
    for limit in _MEMORIES:
        if min(sizes) < limit < 1.3 * max(sizes):
            axes.axvline(limit, color="grey", lw=0.8, ls=":")
            axes.annotate(
                f"{limit} GB", (limit, 1), xycoords=("data", "axes fraction"), va="top", color="grey"
            )
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("file, GB")
    axes.set_ylabel("mean KL divergence (± 2 standard errors)")
    axes.set_title("Size and distance from the reference; lower left is better")
    axes.margins(x=0.12)
    _legend(axes)
    return used


def draw_tokens(field: str, axes: Any, rows: Sequence[Row]) -> list[Row]:
    """Bars from zero, so that their lengths can be compared; prompts and single tokens each their own."""
    used = [
        row for row in of_kind(rows, "speed") if not row.get("gm_test") and not row["n_depth"] and row[field]
    ]
    if not used:
        return []
    names = list(dict.fromkeys(_label(row) for row in used))
    tests = list(dict.fromkeys(describe_test(row) for row in used))
    height = 0.8 / len(tests)
    for number, test in enumerate(tests):
        mine = [row for row in used if describe_test(row) == test]
        at = [names.index(_label(row)) + (number - (len(tests) - 1) / 2) * height for row in mine]
        axes.barh(
            at, [row["avg_ts"] for row in mine], height * 0.92, xerr=[row["stddev_ts"] for row in mine],
            color=COLOURS[number % len(COLOURS)], label=test, error_kw={"capsize": 2, "lw": 0.8},
        )  # fmt: skip
        for y, row in zip(at, mine, strict=True):
            axes.annotate(
                f" {row['avg_ts']:.1f}", (row["avg_ts"] + row["stddev_ts"], y), va="center", fontsize=7
            )
            if row.get("gm_limit_ts"):
                axes.plot([row["gm_limit_ts"]] * 2, [y - height / 2, y + height / 2], color="black", lw=2)
    if any(row.get("gm_limit_ts") for row in used):
        axes.plot([], [], color="black", lw=2, label="read bandwidth allows")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(
        0, 1.12 * max(max(row["avg_ts"] + row["stddev_ts"], row.get("gm_limit_ts", 0.0)) for row in used)
    )
    axes.set_xlabel("tokens per second (± standard deviation)")
    axes.set_title("Speed of prompts" if field == "n_prompt" else "Speed of single tokens")
    _legend(axes)
    return used


def _legend(axes: Any) -> None:
    """Below the chart, where it hides nothing."""
    axes.figure.legend(loc="outside lower center", ncols=4, fontsize=7)


def _plain_numbers(axis: Any) -> None:
    """20 and 50 instead of 2 x 10^1 and nothing on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_memory(axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = of_kind(rows, "memory")
    series: dict[tuple[str, str], list[Row]] = {}
    for row in used:
        series.setdefault((_label(row), str(row["type_k"])), []).append(row)
    for number, ((name, kv), mine) in enumerate(series.items()):
        mine.sort(key=lambda row: int(row["gm_n_ctx"]))
        x = [row["gm_n_ctx"] for row in mine]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            x,
            [(r["gm_planned"] + r["gm_before"]) / _GB for r in mine],
            "-",
            color=colour,
            label=f"{name}, cache {kv}",
        )
        axes.plot(x, [(r["gm_peak_rss"] + r["gm_before"]) / _GB for r in mine], "x", color=colour)
    if used:
        axes.plot([], [], "kx", label="measured peak (lines: planned)")
        contexts = sorted({row["gm_n_ctx"] for row in used})
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [str(c) for c in contexts])
        axes.set_ylim(0, 1.15 * max((r["gm_planned"] + r["gm_before"]) / _GB for r in used))
        axes.set_xlabel("context, tokens, all of them in use")
        axes.set_ylabel("memory of the process, GB")
        axes.set_title("Memory and context")
        _legend(axes)
    return used


def draw_depth(axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = [row for row in of_kind(rows, "speed") if not row.get("gm_test")]
    if len({row["n_depth"] for row in used}) < 2:
        return []
    series: dict[tuple[str, str], list[Row]] = {}
    for row in used:
        test = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        series.setdefault((_label(row), test), []).append(row)
    names = list(dict.fromkeys(name for name, _ in series))
    for (name, test), mine in series.items():
        mine.sort(key=lambda row: int(row["n_depth"]))
        axes.errorbar(
            [row["n_depth"] for row in mine], [row["avg_ts"] for row in mine],
            yerr=[row["stddev_ts"] for row in mine], color=COLOURS[names.index(name) % len(COLOURS)],
            ls="-" if test.startswith("tg") else "--", marker="o", ms=3, capsize=2, label=f"{name} {test}",
        )  # fmt: skip
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("tokens already in the context")
    axes.set_ylabel("tokens per second")
    axes.set_title("Speed behind a long context")
    _legend(axes)
    return used


def draw_roofline(axes: Any, rows: Sequence[Row]) -> list[Row]:
    """Multiply-accumulates per byte of weights against the rate reached, below the roof of the machine."""
    used = [
        row for row in of_kind(rows, "speed")
        if not row.get("gm_test") and not row["n_depth"] and row.get("gm_macs")
        and (row.get("gm_limit_ts") or row.get("gm_prefill_efficiency"))
    ]  # fmt: skip
    limits = [row for row in used if row.get("gm_limit_ts")]
    peaks = [row for row in used if row.get("gm_prefill_efficiency")]
    if not limits or not peaks:
        return []
    bandwidth = (
        max(row["gm_limit_ts"] * (row["gm_weight_bytes"] + row["gm_cache_bytes"]) for row in limits) / 1e9
    )
    peak = max(row["avg_ts"] * row["gm_macs"] / row["gm_prefill_efficiency"] for row in peaks) / 1e9
    knee = peak / bandwidth
    low = min((row["gm_macs"] + row["gm_head_macs"]) / row["gm_weight_bytes"] for row in used) / 4
    axes.plot(
        [low, knee, knee * 30],
        [low * bandwidth, peak, peak],
        "k-",
        label=f"{bandwidth:.1f} GB/s, {peak:.0f} GMAC/s",
    )
    for row in used:
        n = row["n_prompt"] or 1
        macs = n * row["gm_macs"] + row["gm_head_macs"]  # only the last token of a prompt needs the head
        x, y = macs / row["gm_weight_bytes"], macs * row["avg_ts"] / n / 1e9
        number = list(dict.fromkeys(map(_label, used))).index(_label(row))
        axes.plot(
            x,
            y,
            "o" if row["n_prompt"] else "s",
            color=COLOURS[number % len(COLOURS)],
            label=_label(row) if row["n_prompt"] else None,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(
        "multiply-accumulates per byte of weights read once (squares: single tokens, circles: prompts)"
    )
    axes.set_ylabel("GMAC/s")
    axes.set_title("Roofline")
    _legend(axes)
    return used


def draw_categories(axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = [row for row in of_kind(rows, "quality") if row.get("gm_kl_mean") and row["gm_text"] != ALL]
    texts = list(dict.fromkeys(row["gm_text"] for row in used))
    files = list(dict.fromkeys(_label(row) for row in used))
    if len(texts) < 2:
        return []
    cells = [[math.nan] * len(texts) for _ in files]
    for row in used:
        cells[files.index(_label(row))][texts.index(row["gm_text"])] = math.log10(row["gm_kl_mean"])
    axes.imshow(cells, cmap="cividis_r", aspect="auto")
    axes.grid(False)
    for row in used:
        x, y = texts.index(row["gm_text"]), files.index(_label(row))
        axes.text(
            x,
            y,
            f"{row['gm_kl_mean']:.2g}",
            ha="center",
            va="center",
            fontsize=7,
            bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 1},
        )
    axes.set_xticks(range(len(texts)), texts)
    axes.set_yticks(range(len(files)), files)
    axes.set_title("Mean KL divergence by category of text")
    return used


def draw_drafting(axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = [row for row in of_kind(rows, "speed") if str(row.get("gm_test", "")).startswith("drafting")]
    names = list(dict.fromkeys(_label(row) for row in used))
    for number, test in enumerate(("drafting off", "drafting on")):
        mine = [row for row in used if row["gm_test"] == test]
        at = [names.index(_label(row)) + (number - 0.5) * 0.4 for row in mine]
        axes.bar(
            at, [row["avg_ts"] for row in mine], 0.38, yerr=[row["stddev_ts"] for row in mine], capsize=3,
            color=COLOURS[number], label=test,
        )  # fmt: skip
        for x, row in zip(at, mine, strict=True):
            if row.get("gm_draft_n"):
                share = row["gm_draft_accepted"] / row["gm_draft_n"]
                axes.annotate(
                    f"{share:.0%} kept",
                    (x, row["avg_ts"] + row["stddev_ts"]),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("tokens per second")
    axes.set_title("Drafting")
    if used:
        _legend(axes)
    return used
