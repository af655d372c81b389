"""lm-eval itself, with its own model class for transformers beside ours, on a tiny random checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gemmule
from project_modules import load_module

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers", minversion="5.17")
pytest.importorskip("lm_eval")

checkpoints = load_module("tools", "make_tiny_checkpoint")

WORDS = ("the", "a", "text", "of", "words", "one", "two", "three", "17", "2026", "(or", "so)", "Ünïcödé", "é")


def texts(n: int, n_words: int, seed: int = 3) -> list[str]:
    import random

    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=n_words)) for _ in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers saves it, converted, and a folder of tasks."""
    folder: Path = tmp_path_factory.mktemp("evaluated")
    checkpoints.save("gemma3", folder / "source")
    gemmule.convert(folder / "source", folder / "tiny.gguf", type="F32")
    questions: list[dict[str, Any]] = [
        {"q": text, "choices": texts(4, 3, seed), "label": seed % 4} for seed, text in enumerate(texts(9, 6))
    ]
    write_task(
        folder, "pick", questions, output_type="multiple_choice", doc_to_text="{{q}}",
        doc_to_choice="{{choices}}", doc_to_target="label", fewshot_split="test",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )  # fmt: skip
    write_task(
        folder, "write", [{"q": text} for text in texts(4, 6)],
        output_type="generate_until", doc_to_text="{{q}}", doc_to_target="{{q}}",
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 12}, metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    return folder


def write_task(folder: Path, name: str, questions: list[dict[str, Any]], **config: Any) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    for metric in config["metric_list"]:
        metric.update(aggregation="mean", higher_is_better=True)
    config |= {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "metadata": {"version": 1.0},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from gemmule._bench.lm_eval import GemmuleLM

    theirs = HFLM(
        pretrained=str(folder / "source"), tokenizer=str(folder / "source"), max_length=64, device="cpu",
        dtype="float32", add_bos_token=True, batch_size=1,
    )  # fmt: skip
    return theirs, GemmuleLM(str(folder / "tiny.gguf"), n_ctx=64, kv_type="f32")


def test_each_request_has_the_same_answer(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    pairs = [(text, f" {end}") for text in texts(6, 5) for end in texts(3, 2, seed=len(text))]
    pairs += [("", "no context"), ("trailing space ", "word"), (texts(1, 80)[0], " too long a context")]
    requests = [SimpleNamespace(args=pair, arguments=pair) for pair in pairs]
    for (a, greedy), (b, other) in zip(
        theirs.loglikelihood(requests), ours.loglikelihood(requests), strict=True
    ):
        assert b == pytest.approx(a, rel=1e-4)
        assert greedy == other
    theirs.add_bos_token = False  # with it, BOS is predicted behind a BOS
    rolling = [SimpleNamespace(args=(text,)) for text in texts(3, 90)]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(
        theirs.loglikelihood_rolling(rolling), rel=1e-4
    )


def test_tasks_have_the_same_figures(folder: Path, models: tuple[Any, Any]) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = []
    for model in models:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=["pick", "write"],
            num_fewshot=2,
            task_manager=manager,
            bootstrap_iters=0,
        )
        figures = results["results"]
        texts = [sample["resps"] for sample in results["samples"]["write"]]
        found.append((figures, texts))
    (theirs, their_texts), (ours, our_texts) = found
    assert our_texts == their_texts
    assert any(any(answers[0]) for answers in our_texts)
    for task, metrics in theirs.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert ours[task][name] == pytest.approx(value, rel=1e-4), (task, name)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemmule", "bench", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_runs_tasks_of_a_folder(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    options = ("--include-path", folder, "--num-fewshot", "1", "--limit", "5", "-c", "128", "-o", rows)
    done = run(folder / "tiny.gguf", "--tasks", "pick,write", *options)
    assert done.returncode == 0, done.stderr
    assert "pick acc_norm" in done.stdout
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["gm_question"] for row in found] == ["pick acc", "pick acc_norm", "write exact_match"]
    assert {row["gm_asked"] for row in found} == {5, 4}
    missing = run(folder / "tiny.gguf", "--tasks", "no_such_task")
    assert missing.returncode == 3
    assert "lm-eval knows no task 'no_such_task'" in missing.stderr
