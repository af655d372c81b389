"""`gemmule bench eval`: the tasks of lm-eval, as rows of quality that can be compared, drawn and kept."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemmule._bench import machine
from gemmule._bench.engine import Subject, head_of
from gemmule._bench.questions import share
from gemmule._bench.record import KIND, Keep, Row, now
from gemmule._errors import Error, UnsupportedError

__all__ = ["EvaluationPlan", "measure_tasks"]

# Metrics that are the share of right answers, unless answers are right in part.
_SHARES = {"acc", "acc_norm", "acc_mutual_info", "exact_match", "em"}


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What is asked: names of tasks or groups; how many examples stand before a question (None: as the task
    has it); at most `limit` questions of a task; a folder with more tasks; whether the chat template is used.
    """

    tasks: tuple[str, ...]
    n_examples: int | None = None
    limit: int | None = None
    folder: Path | None = None
    chat: bool = False

    def describe(self, n_ctx: int) -> str:
        """What must be equal where two figures of a task are compared, beside the task."""
        parts = [f"lm-eval {version('lm-eval')}", f"context {n_ctx}"]
        if self.n_examples is not None:
            parts.append(f"{self.n_examples} examples")
        if self.limit is not None:
            parts.append(f"{self.limit} questions")
        return ", ".join([*parts, *(["chat template"] if self.chat else [])])


def measure_tasks(
    subjects: Sequence[Subject],
    plan: EvaluationPlan,
    *,
    n_ctx: int = 4096,
    progress: Callable[[str], None] = lambda _: None,
    keep: Keep = lambda _: None,
) -> list[Row]:
    """A row for every file, task and metric: `gm_right`, a share with its standard error, where each answer
    is right or not; else `gm_value`, with lm-eval's error or None. Raises UnsupportedError for a task that
    lm-eval does not know or cannot run, and MissingExtraError without lm-eval.
    """
    from gemmule._bench.lm_eval import GemmuleLM

    manager = _manager(plan)
    facts = machine.describe()
    rows: list[Row] = []
    for subject in subjects:
        base = head_of(subject, facts)
        packed: Any = {"auto": "auto", "yes": True, "no": False}[subject.packed]
        options = {"kv_type": subject.kv_type, "isa": subject.isa or None, "packed": packed}
        model = GemmuleLM(subject.path, n_ctx=n_ctx, n_threads=subject.n_threads or None, **options)
        progress(f"{', '.join(plan.tasks)}: {subject.path}")
        with contextlib.closing(model), _quiet(), _one_sentence(plan):
            found = importlib.import_module("lm_eval").simple_evaluate(
                model=model,
                tasks=manager.match_tasks(list(plan.tasks)),
                num_fewshot=plan.n_examples,
                limit=plan.limit,
                apply_chat_template=plan.chat,
                fewshot_as_multiturn=plan.chat,
                task_manager=manager,
                bootstrap_iters=1000,
                log_samples=False,
            )
        same = {**base, KIND: "quality", "test_time": now(), "gm_protocol": plan.describe(n_ctx)}
        rows += [same | row for row in _figures(found)]
        keep(rows)
    return rows


def _figures(found: Any) -> Iterator[Row]:
    """What lm-eval found: {task: {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...}}."""
    for task, figures in found["results"].items():
        n = found.get("n-samples", {}).get(task, {}).get("effective", 0)  # a group has none of its own
        for key, value in figures.items():
            metric, _, where = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not where:
                continue
            name = f"{task} {metric}" + (f" ({where})" if where != "none" else "")
            row: Row = {"gm_text": name, "gm_question": name, "gm_asked": n, "gm_task": task}
            right = round(value * n) if math.isfinite(value) else 0
            if metric in _SHARES and n and abs(value * n - right) < 1e-6 * n:
                yield row | share("right", right, n)
            else:
                error = figures.get(f"{metric}_stderr,{where}")
                error = float(error) if isinstance(error, int | float) else None
                better = found.get("higher_is_better", {}).get(task, {}).get(metric, True)
                shown = {"gm_value": float(value), "gm_value_error": error}
                yield row | shown | {"gm_more_is_better": better is not False}


def _manager(plan: EvaluationPlan) -> Any:
    """lm-eval's list of tasks, which has all that are wanted."""
    tasks: Any = importlib.import_module("lm_eval.tasks")
    with _quiet(), _one_sentence(plan):
        manager = tasks.TaskManager(include_path=str(plan.folder) if plan.folder else None)
        unknown = [name for name in plan.tasks if not manager.match_tasks([name])]
    if unknown:
        raise UnsupportedError(
            f"lm-eval knows no task {unknown[0]!r}; `lm_eval ls tasks` lists those there are"
        )
    return manager


@contextlib.contextmanager
def _one_sentence(plan: EvaluationPlan) -> Iterator[None]:
    """Whatever lm-eval and the libraries under it throw names the tasks."""
    try:
        yield
    except (Error, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnsupportedError(f"lm-eval could not run {', '.join(plan.tasks)}: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells on stdout and by many loggers what it does; its bars are for a terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bars):
            yield
    finally:
        logging.disable(before)
