"""The charts of a report: each draws its rows into the axes it is given and returns those it used.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from gemmule._bench.advice import choices
from gemmule._bench.formats import of_kind
from gemmule._bench.quality import ALL
from gemmule._bench.record import Row, describe_test
from gemmule._bench.series import by_context, by_depth, distant_rows, label, pareto, plain_speed, taken_bytes

__all__ = [
    "colour_of",
    "draw_by_size",
    "draw_categories",
    "draw_depth",
    "draw_drafting",
    "draw_memory",
    "draw_roofline",
    "draw_tokens",
    "draw_trade_off",
    "finish",
]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_GB = 1e9
_MEMORIES = (8, 12, 16, 24)  # GB of usual machines
_SMALL: dict[str, Any] = {"fontsize": 7}
_BY_SIZE = {  # title, axis, the sign that makes less better
    "kl_mean": ("Size and distance from the reference", "mean KL divergence", 1),
    "same_top": ("Size and agreement with the reference", "share of equal top tokens", -1),
    "ln_ppl_ratio": ("Size and perplexity", "ln(PPL / PPL of the reference)", 1),
}


def draw_by_size(figure: str, axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = [row for row in distant_rows(rows) if row.get(f"gm_{figure}") is not None]
    if not used:
        return []
    title, name, sign = _BY_SIZE[figure]
    sizes = [row["model_size"] / _GB for row in used]
    values = [row[f"gm_{figure}"] for row in used]
    errors = [2 * row[f"gm_{figure}_error"] for row in used]
    axes.errorbar(sizes, values, yerr=errors, fmt="o", color=_COLOURS[0], capsize=3, zorder=3)
    front = pareto([(size, sign * value) for size, value in zip(sizes, values, strict=True)])
    axes.plot(
        [sizes[i] for i in front], [values[i] for i in front], "--", color=_COLOURS[1],
        label="the best of their size",
    )  # fmt: skip
    for row, x, y in zip(used, sizes, values, strict=True):
        axes.annotate(label(row), (x, y), xytext=(5, 5), textcoords="offset points")
    for limit in _MEMORIES:
        if min(sizes) < limit < 1.3 * max(sizes):
            axes.axvline(limit, color="grey", lw=0.8, ls=":")
            at = {"xycoords": ("data", "axes fraction"), "va": "top", "color": "grey"}
            axes.annotate(f"{limit} GB", (limit, 1), **at)
    if figure == "kl_mean":
        _logarithmic(axes)
    axes.margins(x=0.12)
    better = "lower" if sign > 0 else "upper"
    finish(axes, f"{title}; {better} left is better", "file, GB", f"{name} (± 2 standard errors)")
    return used


def draw_trade_off(axes: Any, rows: Sequence[Row]) -> list[Row]:
    """What a file costs in distance, time and memory at once."""
    found = [choice for choice in choices(rows) if choice.kl > 0]
    if len(found) < 2:
        return []
    most = max(choice.memory for choice in found)
    for choice in found:
        at = (choice.rate, choice.kl)
        errors = {"xerr": 2 * choice.rate_error, "yerr": 2 * choice.quality["gm_kl_mean_error"]}
        axes.errorbar(*at, **errors, color=_COLOURS[0], capsize=2, lw=0.8, zorder=3)
        axes.scatter(*at, s=900 * choice.memory / most, color=_COLOURS[5], alpha=0.5)
        text = f"{label(choice.quality)}, {choice.memory / _GB:.2g} GB"
        axes.annotate(text, at, xytext=(6, 6), textcoords="offset points", **_SMALL)
    _logarithmic(axes)
    axes.margins(x=0.15, y=0.15)
    title = "Speed, distance and memory (area), ± 2 standard errors; lower right is better"
    finish(axes, title, "single tokens per second", "mean KL divergence")
    return [row for choice in found for row in (choice.quality, choice.speed)]


def draw_tokens(field: str, axes: Any, rows: Sequence[Row]) -> list[Row]:
    """Bars from zero, so that their lengths can be compared; prompts and single tokens each their own."""
    used = [row for row in plain_speed(rows) if not row["n_depth"] and row[field]]
    if not used:
        return []
    names = _names(used)
    tests = list(dict.fromkeys(describe_test(row) for row in used))
    height = 0.8 / len(tests)
    for number, test in enumerate(tests):
        mine = [row for row in used if describe_test(row) == test]
        at = [names.index(label(row)) + (number - (len(tests) - 1) / 2) * height for row in mine]
        axes.barh(
            at, [row["avg_ts"] for row in mine], height * 0.92, xerr=[row["stddev_ts"] for row in mine],
            color=colour_of(number), label=test, error_kw={"capsize": 2, "lw": 0.8},
        )  # fmt: skip
        for y, row in zip(at, mine, strict=True):
            end = (row["avg_ts"] + row["stddev_ts"], y)
            axes.annotate(f" {row['avg_ts']:.1f}", end, va="center", **_SMALL)
            if row.get("gm_limit_ts"):
                axes.plot([row["gm_limit_ts"]] * 2, [y - height / 2, y + height / 2], color="black", lw=2)
    if any(row.get("gm_limit_ts") for row in used):
        axes.plot([], [], color="black", lw=2, label="read bandwidth allows")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    most = max(max(row["avg_ts"] + row["stddev_ts"], row.get("gm_limit_ts", 0.0)) for row in used)
    axes.set_xlim(0, 1.12 * most)
    title = "Speed of prompts" if field == "n_prompt" else "Speed of single tokens"
    finish(axes, title, "tokens per second (± standard deviation)")
    return used


def draw_memory(axes: Any, rows: Sequence[Row]) -> list[Row]:
    lines = by_context(rows)
    used = [row for mine in lines.values() for row in mine]
    if not used:
        return []
    for number, ((name, kv), mine) in enumerate(lines.items()):
        x, colour = [row["gm_n_ctx"] for row in mine], colour_of(number)
        axes.plot(x, [taken_bytes(r) / _GB for r in mine], "-", color=colour, label=f"{name}, cache {kv}")
        axes.plot(x, [(r["gm_peak_rss"] + r["gm_before"]) / _GB for r in mine], "x", color=colour)
    axes.plot([], [], "kx", label="measured peak (lines: planned)")
    contexts = sorted({row["gm_n_ctx"] for row in used})
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [str(c) for c in contexts])
    axes.set_ylim(0, 1.15 * max(taken_bytes(row) / _GB for row in used))
    finish(axes, "Memory and context", "context, tokens, all of them in use", "memory of the process, GB")
    return used


def draw_depth(axes: Any, rows: Sequence[Row]) -> list[Row]:
    lines = by_depth(rows)
    if not lines:
        return []
    names = list(dict.fromkeys(name for name, _ in lines))
    for (name, test), mine in lines.items():
        axes.errorbar(
            [row["n_depth"] for row in mine], [row["avg_ts"] for row in mine],
            yerr=[row["stddev_ts"] for row in mine], color=colour_of(names.index(name)),
            ls="-" if test.startswith("tg") else "--", marker="o", ms=3, capsize=2, label=f"{name} {test}",
        )  # fmt: skip
    _logarithmic(axes)
    finish(axes, "Speed behind a long context", "tokens already in the context", "tokens per second")
    return [row for mine in lines.values() for row in mine]


def draw_roofline(axes: Any, rows: Sequence[Row]) -> list[Row]:
    """Multiply-accumulates per byte of weights against the rate reached, below the roof of the machine."""
    used = [
        row for row in plain_speed(rows)
        if not row["n_depth"] and row.get("gm_macs")
        and (row.get("gm_limit_ts") or row.get("gm_prefill_efficiency"))
    ]  # fmt: skip
    limits = [row for row in used if row.get("gm_limit_ts")]
    peaks = [row for row in used if row.get("gm_prefill_efficiency")]
    if not limits or not peaks:
        return []
    read = (row["gm_limit_ts"] * (row["gm_weight_bytes"] + row["gm_cache_bytes"]) for row in limits)
    bandwidth = max(read) / 1e9
    peak = max(row["avg_ts"] * row["gm_macs"] / row["gm_prefill_efficiency"] for row in peaks) / 1e9
    knee = peak / bandwidth
    low = min((row["gm_macs"] + row["gm_head_macs"]) / row["gm_weight_bytes"] for row in used) / 4
    roof = f"{bandwidth:.1f} GB/s, {peak:.0f} GMAC/s"
    axes.plot([low, knee, knee * 30], [low * bandwidth, peak, peak], "k-", label=roof)
    names = _names(used)
    for row in used:
        n, name = row["n_prompt"] or 1, label(row)
        macs = n * row["gm_macs"] + row["gm_head_macs"]  # only the last token of a prompt needs the head
        point = (macs / row["gm_weight_bytes"], macs * row["avg_ts"] / n / 1e9)
        style = {"color": colour_of(names.index(name)), "label": name if row["n_prompt"] else None}
        axes.plot(*point, "o" if row["n_prompt"] else "s", **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    unit = "multiply-accumulates per byte of weights read once (squares: single tokens, circles: prompts)"
    finish(axes, "Roofline", unit, "GMAC/s")
    return used


def draw_categories(axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = [row for row in of_kind(rows, "quality") if row.get("gm_kl_mean") and row["gm_text"] != ALL]
    texts, files = list(dict.fromkeys(row["gm_text"] for row in used)), _names(used)
    if len(texts) < 2:
        return []
    cells = [[math.nan] * len(texts) for _ in files]
    box = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 1}
    for row in used:
        x, y = texts.index(row["gm_text"]), files.index(label(row))
        cells[y][x] = math.log10(row["gm_kl_mean"])
        axes.text(x, y, f"{row['gm_kl_mean']:.2g}", ha="center", va="center", bbox=box, **_SMALL)
    axes.imshow(cells, cmap="cividis_r", aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(texts)), texts)
    axes.set_yticks(range(len(files)), files)
    finish(axes, "Mean KL divergence by category of text")
    return used


def draw_drafting(axes: Any, rows: Sequence[Row]) -> list[Row]:
    used = [row for row in of_kind(rows, "speed") if str(row.get("gm_test", "")).startswith("drafting")]
    if not used:
        return []
    names = _names(used)
    for number, test in enumerate(("drafting off", "drafting on")):
        mine = [row for row in used if row["gm_test"] == test]
        at = [names.index(label(row)) + (number - 0.5) * 0.4 for row in mine]
        axes.bar(
            at, [row["avg_ts"] for row in mine], 0.38, yerr=[row["stddev_ts"] for row in mine], capsize=3,
            color=colour_of(number), label=test,
        )  # fmt: skip
        for x, row in zip(at, mine, strict=True):
            if row.get("gm_draft_n"):
                share, top = row["gm_draft_accepted"] / row["gm_draft_n"], row["avg_ts"] + row["stddev_ts"]
                axes.annotate(f"{share:.0%} kept", (x, top), ha="center", va="bottom", **_SMALL)
    axes.set_xticks(range(len(names)), names)
    finish(axes, "Drafting", ylabel="tokens per second")
    return used


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(map(label, rows)))


def colour_of(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def finish(axes: Any, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Title, units, and the legend below the chart, where it hides nothing."""
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside lower center", ncols=4, **_SMALL)


def _logarithmic(axes: Any) -> None:
    """A logarithmic y axis with 20 and 50 on it instead of 2 x 10^1 and nothing."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
