"""What changed between two measurements, and whether that is more than their error.

Rows are matched by what they measure. Repetitions of two runs that took turns on one machine are compared in
pairs, others by Welch's test; windows of texts are always pairs, as both files saw the same ones. Runs at
different times are also allowed the difference between what the host's yardstick ran at. A change is real
only outside its interval of 99 %; anything else is indistinguishable.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmule._bench.formats import check_comparable, table, told_apart
from gemmule._bench.record import Row, describe_test
from gemmule._bench.statistics import t_quantile
from gemmule._errors import FormatError

__all__ = ["Change", "Condition", "compare_rows", "comparison_markdown"]

_CONFIDENCE = 0.995  # one side
_METRICS = ("pp", "tg", "first", "load", "memory", "kl", "ppl", "top", "right", "value")


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One figure in both measurements. `change` is relative, above 0 for worse; `error` half the width of its
    interval.
    """

    metric: str
    name: str
    old: float
    new: float
    change: float
    error: float

    @property
    def real(self) -> bool:
        return abs(self.change) > self.error

    @property
    def shown(self) -> str:
        if not self.real:
            return "indistinguishable"
        return f"{abs(self.change):.1%} {'worse' if self.change > 0 else 'better'}"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "real": self.real}


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """`tg>5%`: a figure got worse by more than that."""

    metric: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        found = re.fullmatch(r"\s*([a-z]+)\s*>\s*(\d+(?:\.\d+)?)\s*%\s*", text)
        if not found or found[1] not in _METRICS:
            raise ValueError(
                f"{text!r} is no condition; write such as 'tg>5%', with one of {', '.join(_METRICS)}"
            )
        return cls(found[1], float(found[2]) / 100)

    def holds(self, change: Change) -> bool:
        """Whether the change is large enough, and real."""
        return change.metric == self.metric and change.real and change.change > self.limit


def compare_rows(old: Sequence[Row], new: Sequence[Row]) -> list[Change]:
    """Every figure that both have."""
    check_comparable([*old, *new])
    lone = _is_one_file(old) and _is_one_file(new)  # then they may be two quantizations
    theirs = {_key(row, lone): row for row in old}
    changes: list[Change] = []
    for row in told_apart(new):
        other = theirs.get(_key(row, lone))
        if other is not None:
            changes += _CHANGES[row.get("gm_kind", "speed")](other, row)
    if not changes:
        raise FormatError("the two have no test of the same file in common; measure the same things twice")
    return changes


def _is_one_file(rows: Sequence[Row]) -> bool:
    return len({row["model_filename"] for row in rows}) == 1


def _key(row: Row, lone: bool) -> tuple[Any, ...]:
    fields = ["gm_kind", "n_threads", "type_k", "gm_packed", "gm_test"]
    fields += ["n_prompt", "n_gen", "n_depth", "gm_text", "gm_n_ctx"]
    return (None if lone else row["model_filename"], row.get("gm_engine"), *(row.get(f) for f in fields))


def _speed(old: Row, new: Row) -> list[Change]:
    test = describe_test(new)
    if test.startswith("load"):
        metric = "load"
    elif test.startswith("first"):
        metric = "first"
    elif new.get("gm_test"):
        return []
    else:
        metric = "tg" if new["n_gen"] else "pp"
    a, b = (np.log(np.array(row["samples_ns"], np.float64)) for row in (old, new))  # longer is worse
    paired = bool(old.get("gm_session")) and old["gm_session"] == new.get("gm_session")
    change, error = _difference(a, b, paired=paired)
    if not paired:
        error += _drift(old, new, metric)
    name = f"{new['model_type']} {test}"
    return [Change(metric, name, old["avg_ts"], new["avg_ts"], math.expm1(change), error)]


def _drift(old: Row, new: Row, metric: str) -> float:
    """How much the host itself changed between two runs: its memory for single tokens, its cores for the
    rest.
    """
    rates = [row.get("gm_yardstick") for row in (old, new)]
    if not all(rates):
        return 0.0
    a, b = (float(np.median([pair[0 if metric == "tg" else 1] for pair in r])) for r in rates if r)
    return abs(math.log(b / a))


def _memory(old: Row, new: Row) -> list[Change]:
    """Peaks repeat within a megabyte or so; a percent is allowed for."""
    a, b = old["gm_peak_rss"], new["gm_peak_rss"]
    name = f"{new['model_type']} memory, context {new['gm_n_ctx']}, cache {new['type_k']}"
    return [Change("memory", name, a, b, b / a - 1, 0.01)]


def _quality(old: Row, new: Row) -> list[Change]:
    if "gm_right" in new and "gm_right" in old:
        return [_figure(old, new, "right", sign=-1)]
    if "gm_value" in new and "gm_value" in old:
        return [_figure(old, new, "value", sign=-1 if new.get("gm_more_is_better", True) else 1)]
    if "gm_ppl" not in new or "gm_ppl" not in old:
        return []
    changes, name = [], f"{new['model_type']} {new['gm_text']}"
    nll = [np.array(row["gm_samples_nll"]) for row in (old, new)]
    change, error = _difference(*nll, paired=True)
    changes.append(
        Change("ppl", f"{name} perplexity", old["gm_ppl"], new["gm_ppl"], math.expm1(change), error)
    )
    if "gm_kl_mean" in new and "gm_kl_mean" in old:
        for metric, title, field, key, sign in (
            ("kl", "mean KL", "gm_kl_mean", "gm_samples_kl", 1),
            ("top", "same top", "gm_same_top", "gm_samples_same", -1),
        ):
            samples = [sign * np.array(row[key]) for row in (old, new)]
            change, error = _difference(*samples, paired=True)
            scale = max(abs(old[field]), 1e-9)
            changes.append(
                Change(metric, f"{name} {title}", old[field], new[field], change / scale, error / scale)
            )
    return changes


def _figure(old: Row, new: Row, name: str, *, sign: int) -> Change:
    """A share of right answers or another figure of a task, with its standard error. Rows do not say which
    answers were right, so the two are treated as independent samples: the interval is wider than need be.
    """
    a, b = old[f"gm_{name}"], new[f"gm_{name}"]
    errors = [row.get(f"gm_{name}_error") for row in (old, new)]
    error = t_quantile(_CONFIDENCE, math.inf) * math.hypot(*(math.inf if e is None else e for e in errors))
    scale = abs(a) or 1 / max(1, old.get("gm_asked", 0))  # where nothing was right, a change is in questions
    title = f"{new['model_type']} {new['gm_text']}"
    return Change(name, title, a, b, sign * (b - a) / scale + 0.0, error / scale)


_CHANGES = {"speed": _speed, "memory": _memory, "quality": _quality}


def _difference(a: Any, b: Any, *, paired: bool) -> tuple[float, float]:
    """(mean of b - mean of a, half the width of its interval). Equal numbers differ by nothing, and a single
    repetition tells nothing.
    """
    change = float(b.mean() - a.mean())
    if paired and len(a) == len(b):
        gaps = b - a
        if len(gaps) < 2:
            return change, 0.0 if not gaps.any() else math.inf
        error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
        return change, t_quantile(_CONFIDENCE, len(gaps) - 1) * error
    if min(len(a), len(b)) < 2:
        return change, math.inf
    parts = [float(x.var(ddof=1)) / len(x) for x in (a, b)]
    total = sum(parts)
    if total == 0:
        return change, 0.0
    degrees = total**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    return change, t_quantile(_CONFIDENCE, max(1.0, degrees)) * math.sqrt(total)


def comparison_markdown(changes: Sequence[Change]) -> str:
    """A line for every figure."""
    lines = []
    for c in changes:
        error = "unknown" if math.isinf(c.error) else f"± {c.error:.2%}"
        lines.append([c.name, f"{c.old:.4g}", f"{c.new:.4g}", f"{c.change:+.2%}", error, c.shown])
    return table(["figure", "old", "new", "worse by", "99 %", "verdict"], lines, left={"figure", "verdict"})
