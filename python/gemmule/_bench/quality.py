"""Quality: perplexity, and the distance of every prediction from that of a reference file.

Windows as in llama-perplexity: n_ctx tokens, the first replaced by BOS, the second half scored; a text
shorter than a window is one window, scored from its second token on. The reference and the files take turns
on a few windows at a time, so that one model and the reference's log-probabilities of those windows (a
gigabyte) are all that is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gemmule._bench import machine
from gemmule._bench.engine import Engine, Ids, Subject, open_engine
from gemmule._bench.record import KIND, Keep, Row, file_digest, head, now
from gemmule._bench.statistics import (
    Doubles,
    Floats,
    compare_rows,
    divergence_figures,
    log_softmax,
)
from gemmule._bench.texts import Text, texts_digest
from gemmule._errors import FormatError
from gemmule._score import Windows, perplexity

__all__ = ["QualityPlan", "Window", "measure_quality", "shared_windows", "windows_of"]

_BATCH = 1 << 30  # bytes of the reference's log-probabilities

ALL = "all"


@dataclass(frozen=True, slots=True)
class QualityPlan:
    """Which texts, cut how."""

    texts: tuple[Text, ...]
    n_ctx: int = 512
    max_windows: int = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are run together; those behind `first` are scored."""

    text: str
    ids: Ids
    first: int

    @property
    def targets(self) -> Ids:
        return self.ids[self.first + 1 :]


def windows_of(path: str, plan: QualityPlan) -> list[Window]:
    """The texts by the file's own tokenizer."""
    from gemmule._inspect import open_header
    from gemmule._tokenizer import Tokenizer

    tokenizer = Tokenizer(open_header(path))
    bos = tokenizer.bos_id if tokenizer.adds_bos else None
    made = []
    for text in plan.texts:
        ids = np.array(tokenizer.encode(text.content), np.int32)
        if len(ids) < 2:
            raise FormatError(f"the text {text.name!r} is empty; give one with something to predict")
        windows = Windows.of(ids[: plan.n_ctx * plan.max_windows], plan.n_ctx, bos)
        made += [Window(text.name, window, windows.first) for window in windows]
    return made


def measure_quality(
    subjects: Sequence[Subject],
    plan: QualityPlan,
    *,
    reference: Subject | None = None,
    windows: Sequence[Window] = (),
    progress: Callable[[str], None] = lambda _: None,
    keep: Keep = lambda _: None,
) -> list[Row]:
    """Rows of every file: one for each category, and one for all texts. `windows`: shared_windows, if they
    are known.
    """
    everyone = [*subjects, *([reference] if reference else [])]
    windows = windows or shared_windows(everyone, plan)
    digests = {subject.path: file_digest(subject.path) for subject in everyone}
    facts = machine.describe()
    bases = [
        head(
            subject.path, facts, n_threads=subject.n_threads, kv_type=subject.kv_type,
            digest=digests[subject.path],
        ) | {
            KIND: "quality", "test_time": now(), "gm_engine": subject.engine, "gm_n_ctx": plan.n_ctx,
            "gm_text_sha256": texts_digest(plan.texts), "gm_windows": plan.max_windows,
            "gm_reference_sha256": digests[reference.path] if reference else "",
        }
        for subject in subjects
    ]  # fmt: skip
    found: list[list[dict[str, Doubles]]] = [[] for _ in subjects]
    rows: list[Row] = []
    for batch in _batches(windows, everyone[-1], plan):
        progress(f"windows {len(found[0]) + 1} and on of {len(windows)}")
        expected = None
        if reference is not None:
            engine = open_engine(reference, plan.n_ctx)
            expected = [_log_probabilities(engine, window) for window in batch]
            del engine
        for subject, mine in zip(subjects, found, strict=True):
            engine = open_engine(subject, plan.n_ctx)
            for i, window in enumerate(batch):
                mine.append(_figures(engine, window, expected[i] if expected else None))
            del engine
        rows = [row for base, mine in zip(bases, found, strict=True) for row in _rows(base, windows, mine)]
        keep(rows)
    return rows


def shared_windows(subjects: Sequence[Subject], plan: QualityPlan) -> list[Window]:
    """The windows of files that cut the texts alike. Throws FormatError if they do not."""
    windows = windows_of(subjects[-1].path, plan)
    for subject in subjects[:-1]:
        mine = windows_of(subject.path, plan)
        if len(mine) != len(windows) or any(
            not np.array_equal(a.ids, b.ids) for a, b in zip(mine, windows, strict=True)
        ):
            raise FormatError(
                f"{subject.path} cuts the texts into other tokens than {subjects[-1].path}; "
                "their predictions cannot be compared"
            )
    return windows


def _rows(base: Row, windows: Sequence[Window], found: Sequence[dict[str, Doubles]]) -> list[Row]:
    """A row for each text, and one for all when the last window has been run."""
    names = list(dict.fromkeys(window.text for window in windows[: len(found)]))
    if len(names) > 1 and len(found) == len(windows):
        names.append(ALL)
    pairs = list(zip(windows, found, strict=False))
    return [
        {**base, "gm_text": name, **_summary([f for window, f in pairs if name in (ALL, window.text)])}
        for name in names
    ]


def _batches(windows: Sequence[Window], subject: Subject, plan: QualityPlan) -> Iterator[Sequence[Window]]:
    from gemmule import inspect

    n_bytes = 4 * max(1, inspect(subject.path).n_vocab) * plan.n_ctx // 2
    size = max(1, _BATCH // n_bytes)
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


def _log_probabilities(engine: Engine, window: Window) -> Floats:
    return log_softmax(engine.rows(window.ids, window.first)[:-1])


def _figures(engine: Engine, window: Window, expected: Floats | None) -> dict[str, Doubles]:
    """Of every scored position of a window."""
    mine, targets = _log_probabilities(engine, window), window.targets
    at = np.arange(len(targets))
    figures = {"nll": -mine[at, targets].astype(np.float64)}
    if expected is not None:
        figures |= compare_rows(expected, mine, targets)
        figures["log_ratio"] = figures["nll"] + expected[at, targets].astype(np.float64)
    return figures


def _summary(windows: Sequence[dict[str, Doubles]]) -> Row:
    """The figures of some windows together, and their means window by window, for paired comparisons."""
    joined = {key: np.concatenate([window[key] for window in windows]) for key in windows[0]}
    figures = dict(zip(("ppl", "ppl_error"), perplexity(-joined["nll"]), strict=True))
    row: Row = {"gm_positions": len(joined["nll"])}
    row["gm_samples_nll"] = [float(window["nll"].mean()) for window in windows]
    if "kl" in joined:
        figures |= divergence_figures(joined["kl"], joined["dp"], joined["same"], joined["log_ratio"])
        for key in ("kl", "same"):
            row[f"gm_samples_{key}"] = [float(window[key].mean()) for window in windows]
    return row | {f"gm_{key}": value if math.isfinite(value) else None for key, value in figures.items()}
