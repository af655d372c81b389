"""The class that lm-eval drives and `bench eval`, with lm-eval replaced by the little of it that is used.
test_lm_eval_oracle.py has lm-eval itself.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import gemmule
from gemmule._bench.compare import compare_rows
from gemmule._bench.formats import read_rows
from gemmule._demo import world
from gemmule.cli.bench import bench_command

NAME = "gemmule._bench.lm_eval"


class TaskManager:
    def __init__(self, include_path: str | None) -> None:
        self.include_path = include_path

    def match_tasks(self, names: list[str]) -> list[str]:
        return [name for name in names if name in ("arc_easy", "words", "partly", "broken")]


def simple_evaluate(*, model: Any, tasks: list[str], limit: int | None, **_: Any) -> dict[str, Any]:
    """What lm-eval answers, in its form; like lm-eval it prints and logs what it does."""
    print("lm-eval was here")
    if "broken" in tasks:
        raise KeyError("a data set\nthat is not there")
    (score,) = model.loglikelihood([request("One, two, three,", " four")])
    n = limit or 50
    figures = {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.25},
        "words": {"alias": "words", "word_perplexity,none": -score[0], "word_perplexity_stderr,none": "N/A"},
        "partly": {"alias": "partly", "acc,none": 0.457, "acc_stderr,none": 0.01},
    }
    return {
        "results": {task: figures[task] for task in tasks},
        "higher_is_better": {"words": {"word_perplexity": False}},
        "n-samples": {task: {"original": 50, "effective": n} for task in tasks},
    }


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    names: dict[str, type] = {}

    def register_model(name: str) -> Any:
        return lambda cls: names.setdefault(name, cls)

    api = types.ModuleType("lm_eval.api.model")
    api.LM = type("LM", (), {})  # type: ignore[attr-defined]
    registry = types.ModuleType("lm_eval.api.registry")
    registry.MODEL_REGISTRY, registry.register_model = names, register_model  # type: ignore[attr-defined]
    top, tasks = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.tasks")
    top.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    tasks.TaskManager = TaskManager  # type: ignore[attr-defined]
    for part in (top, tasks, types.ModuleType("lm_eval.api"), types.ModuleType("lm_eval.utils")):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", api)
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", registry)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    assert list(names) == ["gemmule"]
    sys.modules.pop(NAME, None)


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_log_likelihoods_are_those_of_the_logits(module: Any, demo_model_path: Path) -> None:
    lm = module.GemmuleLM(str(demo_model_path), n_ctx=256)
    context, right, wrong = "One, two, three, four,", " five", " banana"
    (good, greedy), (bad, other) = lm.loglikelihood([request(context, right), request(context, wrong)])
    assert greedy
    assert not other
    assert bad < good < 0
    with gemmule.Model(demo_model_path, n_ctx=256) as model:
        ids = model.tokenizer.encode(context + right)
        row = model.logits(ids[:-1]).astype(np.float64)
    assert good == pytest.approx(row[ids[-1]] - np.log(np.exp(row - row.max()).sum()) - row.max(), abs=1e-3)
    (moved, _) = lm.loglikelihood([request(context + " ", "five")])[0]  # the space goes to the continuation
    assert moved == pytest.approx(good, abs=1e-6)


def test_a_continuation_that_fills_the_context_is_refused(module: Any, tiny_gemma4_path: Path) -> None:
    with gemmule.Model(tiny_gemma4_path, n_ctx=8) as model:
        scorer = module.Scorer(model)
        assert scorer.likelihood([5] * 20, [6] * 8)[0] < 0
        with pytest.raises(gemmule.ContextLengthError, match="9 tokens leaves no room"):
            scorer.likelihood([5] * 20, [6] * 9)
        assert scorer.likelihood([5], []) == (0.0, True)


def test_what_texts_share_is_run_once_and_changes_nothing(module: Any, tiny_gemma4_path: Path) -> None:
    """Pairs in all orders: longer, shorter, equal and unrelated ones, and some beyond the window."""
    rng = np.random.default_rng(4)
    texts = [rng.integers(8, 60, n).tolist() for n in (3, 40, 90)]
    pairs = [
        (text[:n], text[n : n + k]) for text in texts for n in (1, 2, 30) for k in (1, 5) if n < len(text)
    ]
    with gemmule.Model(tiny_gemma4_path, n_ctx=64) as model:
        alone = [module.Scorer(model).likelihood(*pair) for pair in pairs]
        scorer = module.Scorer(model)
        for i in rng.permutation(len(pairs) * 3) % len(pairs):
            assert scorer.likelihood(*pairs[i]) == alone[i]


def test_generation_stops_where_the_task_says(module: Any, demo_model_path: Path) -> None:
    lm = module.GemmuleLM(str(demo_model_path), n_ctx=256, max_gen_toks=12)
    (text,) = lm.generate_until([request("One, two, three, four,", {"until": ["seven"]})])
    assert "five" in text
    assert "seven" not in text


def evaluate(path: Path, *options: str) -> Result:
    return CliRunner().invoke(bench_command, ["eval", str(path), *options])


def test_tasks_become_rows_and_a_table(
    module: Any, tiny_gemma4_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule._bench.evaluation.version", lambda _: "0.0")
    kept = tmp_path / "rows.jsonl"
    asked = ["--tasks", "arc_easy, words", "--limit", "20", "-c", "64", "-o", str(kept)]
    done = evaluate(tiny_gemma4_path, *asked)
    assert done.exit_code == 0, done.output
    assert "lm-eval was here" not in done.output
    assert "50.0 ± 10.7 %" in done.output
    right, f1, words = read_rows(kept)
    assert (right["gm_question"], right["gm_right"], right["gm_asked"]) == ("arc_easy acc", 0.5, 20)
    assert (f1["gm_question"], f1["gm_value"], f1["gm_value_error"]) == ("arc_easy f1 (strict)", 0.25, None)
    assert words["gm_value"] > 0
    assert {row["gm_protocol"] for row in (right, f1, words)} == {"lm-eval 0.0, context 64, 20 questions"}
    (change,) = compare_rows([right], [{**right, "gm_right": 0.3}])
    assert (change.metric, round(change.change, 9), change.real) == ("right", 0.4, False)
    (worse,) = compare_rows([words], [{**words, "gm_value": 2 * words["gm_value"]}])
    assert (worse.metric, round(worse.change, 9), worse.real) == ("value", 1.0, False)  # its error is unknown
    (none,) = compare_rows([{**right, "gm_right": 0.0}], [{**right, "gm_right": 0.1}])
    assert none.change == pytest.approx(-2)  # two more of 20
    with pytest.raises(gemmule.FormatError, match="protocol differs"):
        compare_rows([right], [{**right, "gm_protocol": "another"}])
    both = [right, {**words, "gm_protocol": "another"}]  # another task may be asked in another way
    assert len(compare_rows(both, both)) == 2


def test_answers_that_are_right_in_part_are_no_count(
    module: Any, tiny_gemma4_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule._bench.evaluation.version", lambda _: "0.0")
    kept = tmp_path / "rows.jsonl"
    done = evaluate(tiny_gemma4_path, "--tasks", "partly", "-c", "64", "-o", str(kept))
    assert "0.4570 ± 0.0100" in done.output
    (row,) = read_rows(kept)
    assert (row["gm_value"], row["gm_value_error"]) == (0.457, 0.01)
    assert "gm_right" not in row


def test_an_answer_of_the_assistant_goes_on(module: Any, tmp_path: Path) -> None:
    gemmule.convert(Path(world.__file__).with_name("model"), tmp_path / "tiny.gguf", type="BF16")
    lm = module.GemmuleLM(str(tmp_path / "tiny.gguf"), n_ctx=256)
    asked = [{"role": "user", "content": "Who?"}]
    prompt = lm.apply_chat_template(asked)
    begun = [*asked, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == prompt + "It is"
    assert lm.chat_template(True)
    (text,) = lm.generate_until([request(prompt, {"until": ["", "."], "max_new_tokens": 3})])
    assert len(lm._model.tokenizer.encode(text, add_bos=False)) <= 3


def test_what_cannot_be_asked_is_said_in_a_sentence(
    module: Any, tiny_gemma4_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tasks, error in (
        ("arc_eezy", "lm-eval knows no task 'arc_eezy'"),
        ("broken", "lm-eval could not run broken: 'a data set.*that is not there'"),
    ):
        found = evaluate(tiny_gemma4_path, "--tasks", tasks).exception
        assert isinstance(found, gemmule.UnsupportedError)
        assert re.match(error, str(found))
    assert "name at least one task" in evaluate(tiny_gemma4_path, "--tasks", " , ").output


def test_without_lm_eval_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(gemmule.MissingExtraError, match=r"gemmule\[eval\]"):
        importlib.import_module(NAME)
