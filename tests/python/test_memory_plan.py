"""The memory promise: the plan of a file, the context chosen from it, and refusals with the numbers."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import gemmule
from gemmule import _core
from gemmule._inspect import section_file
from gemmule._plan import Room, choose_plan, largest_context, plan_for
from gemmule.cli.show import show_command
from media_model import write_tiny_12b

MIB = 1 << 20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The free memory as the plans see it: the one number in the list."""
    memory = [0]
    plan = _core.memory_plan

    def planned(*args: Any, **options: Any) -> dict[str, int]:
        return {**plan(*args, **options), "available": memory[0]}

    monkeypatch.setattr(_core, "memory_plan", planned)
    monkeypatch.setattr(_core, "available_memory", lambda: memory[0])
    return memory


def test_the_largest_multiple_of_256_or_all() -> None:
    for room in range(0, 5000, 37):
        size = largest_context(lambda n: n, room, 4000)
        assert size == (4000 if room >= 4000 else room // 256 * 256)


def test_auto_takes_all_that_fits_with_a_tenth_to_spare(tiny_gemma4_path: Path, free: list[int]) -> None:
    file = _core.GgufFile(str(tiny_gemma4_path))
    trained = plan_for(file, n_ctx=1).n_ctx_train
    needs = {n: plan_for(file, n_ctx=n).total for n in range(256, trained + 1, 256)}
    free[0] = needs[trained] * 10 // 9 + 10
    assert choose_plan(file, "auto", kv_type="f16").n_ctx == trained
    assert "all the model was trained for" in choose_plan(file, "auto", kv_type="f16").reason
    free[0] = needs[trained] * 10 // 9 - 10
    chosen = choose_plan(file, "auto", kv_type="f16")
    assert chosen.n_ctx == max(n for n in needs if needs[n] <= free[0] - free[0] // 10)
    assert "the largest that fits" in chosen.reason
    assert chosen.fits
    free[0] = needs[256]  # no tenth to spare, but it fits
    assert choose_plan(file, "auto", kv_type="f16").n_ctx == 256
    free[0] = 0  # unknown: the system does not say
    assert choose_plan(file, "auto", kv_type="f16").n_ctx == trained


def test_a_refusal_has_need_have_and_what_fits(tiny_gemma4_path: Path, free: list[int]) -> None:
    file = _core.GgufFile(str(tiny_gemma4_path))
    free[0] = plan_for(file, n_ctx=512).total
    assert choose_plan(file, 512, kv_type="f16").n_ctx == 512
    with pytest.raises(gemmule.NotEnoughMemoryError, match="n_ctx=512 is the largest") as caught:
        choose_plan(file, 600, kv_type="f16")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.need, error.have, error.n_ctx) == (plan_for(file, n_ctx=600).total, free[0], 512)
    with pytest.raises(gemmule.NotEnoughMemoryError, match="available"):
        choose_plan(file, "max", kv_type="f16")
    free[0] = 1000
    with pytest.raises(gemmule.NotEnoughMemoryError, match="no context fits") as caught:
        choose_plan(file, "auto", kv_type="f16")
    assert caught.value.n_ctx == 0


def test_nothing_is_loaded_before_the_refusal(
    tiny_gemma4_path: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "Model", None)
    free[0] = 1000
    with pytest.raises(gemmule.NotEnoughMemoryError):
        gemmule.Model(tiny_gemma4_path)


def test_a_limit_counts_like_free_memory(tiny_gemma4_path: Path) -> None:
    need = gemmule.estimate(tiny_gemma4_path, n_ctx=512).total
    plan = gemmule.estimate(tiny_gemma4_path, n_ctx="auto", memory_limit=need * 10 // 9 + 10)
    assert plan.n_ctx == 512
    with gemmule.Model(tiny_gemma4_path, memory_limit=need * 10 // 9 + 10) as model:
        assert model.n_ctx == 512
    with pytest.raises(gemmule.NotEnoughMemoryError, match="allowed"):
        gemmule.Model(tiny_gemma4_path, n_ctx=768, memory_limit=need)


def test_sessions_share_what_a_limit_allows(tiny_gemma4_path: Path) -> None:
    sizes = {n: gemmule.estimate(tiny_gemma4_path, n_ctx=n) for n in (512, 768)}
    limit = sizes[512].total + sizes[768].kv
    with gemmule.Model(tiny_gemma4_path, n_ctx=512, memory_limit=limit) as model:
        first = model.session()
        with pytest.raises(gemmule.NotEnoughMemoryError) as caught:
            model.session(n_ctx=1024)
        assert caught.value.n_ctx == 768
        second = model.session(n_ctx=768)
        with pytest.raises(gemmule.NotEnoughMemoryError):
            model.session()
        second.close()
        first.close()
        model.session(n_ctx=1024).close()


def test_a_request_that_cannot_fit_says_so_before_it_runs(tiny_gemma4_path: Path, free: list[int]) -> None:
    free[0] = 1 << 40
    with gemmule.Model(tiny_gemma4_path, n_ctx=1024) as model:
        room = Room(model._file, model.plan, None)
        free[0] = model.plan.weights + room.kv(512, "f16")
        assert model.generate([2] * 100, max_tokens=3).usage.prompt_tokens == 100
        began: list[int] = []
        with pytest.raises(gemmule.NotEnoughMemoryError, match="n_ctx=512") as caught:
            model.generate([2] * 100, max_tokens=800, progress=lambda done, _: began.append(done))
        assert not began
        assert caught.value.need == room.kv(900, "f16")
        # An answer of unknown length gets what there is.
        reply = model.generate(
            [2] * 100, temperature=0, logit_bias={i: -1e9 for i in model.tokenizer.eos_ids}
        )
        assert reply.finish_reason == "length"
        assert reply.usage.total_tokens == 512 + 1


def test_an_automatic_context_adapts_to_what_is_left(tiny_gemma4_path: Path, free: list[int]) -> None:
    free[0] = 1 << 40
    with gemmule.Model(tiny_gemma4_path) as model:
        room = Room(model._file, model.plan, None)
        free[0] = model.plan.weights + room.kv(768, "f16")
        first = model.session()
        assert first.n_ctx == 768
        with pytest.raises(gemmule.NotEnoughMemoryError):  # what was promised is not given twice
            model.session()
        first.close()
        with pytest.raises(gemmule.NotEnoughMemoryError):
            model.session(n_ctx=1024)
    free[0] = 1 << 40
    with gemmule.Model(tiny_gemma4_path, n_ctx=512) as model:
        free[0] = model.plan.weights + room.kv(256, "f16")
        with pytest.raises(gemmule.NotEnoughMemoryError, match="n_ctx=256"):  # a number is not changed
            model.session()


def test_embedders_and_an_image_are_counted(tmp_path: Path) -> None:
    path = write_tiny_12b(tmp_path)
    plan = gemmule.estimate(path, n_ctx=1024)
    file = _core.GgufFile(str(path))
    assert plan.media > 0
    parts = plan.weights + plan.kv + plan.scratch + plan.runtime + plan.snapshots
    assert plan.total == parts + plan.media
    assert "media" in str(plan)
    assert plan_for(file, n_ctx=1024).media == 0
    with gemmule.Model(path, n_ctx=1024, mmproj=False) as model:
        assert model.plan.media == 0


def test_a_grammar_asks_for_its_vocabulary_once(tiny_gemma4_path: Path, free: list[int]) -> None:
    free[0] = 1 << 40
    with gemmule.Model(tiny_gemma4_path, n_ctx=256) as model:
        need = 500 * model.tokenizer.n_vocab
        room = Room(model._file, model.plan, None)
        free[0] = model.plan.weights + room.kv(256, "f16") + need - 1
        session = model.session()
        answer = {"regex": "[ab]{3}", "max_tokens": 8}
        with pytest.raises(gemmule.NotEnoughMemoryError, match="ask for plain text") as caught:
            session.generate([2], **answer)
        assert (caught.value.need, caught.value.have) == (need, need - 1)
        session.close()
        with pytest.raises(gemmule.NotEnoughMemoryError):  # a session made for the request leaves room for it
            model.generate([2] * 200, regex="[ab]{3}", max_tokens=56)
        free[0] += 1
        assert len(model.generate([2] * 200, regex="[ab]{3}", max_tokens=56).text) == 3
        free[0] -= need
        assert len(model.generate([2] * 200, regex="[ab]{2}", max_tokens=56).text) == 2


def test_a_large_image_asks_for_what_it_needs_beyond_the_plan(tmp_path: Path) -> None:
    path = write_tiny_12b(tmp_path)
    file = _core.GgufFile(str(path))
    embedders = section_file(file, "mmproj")
    sizes = [_core.image_memory(file, n, n_ctx=2048) for n in (1, 256, 280, 1120)]
    assert sizes[0] == sizes[1] == 0 < sizes[2] < sizes[3]
    assert plan_for(file, n_ctx=2048, mmproj=embedders).media > sizes[2]
    with gemmule.Model(path, n_ctx=2048) as model:
        usual, large = (_ImageRequest(n) for n in (280, 1120))
        room = Room(file, model.plan, None)
        assert room.extra(usual, model.tokenizer, 2048, "f16") == 0
        need = room.extra(large, model.tokenizer, 2048, "f16")
        assert need == sizes[3]
        with pytest.raises(gemmule.NotEnoughMemoryError, match=r"1120 tokens .* use fewer image_tokens"):
            room.allow(large, need, need - 1)
        room.allow(large, need, need)
        assert room.extra(large, model.tokenizer, 2048, "f16") == 0  # the memory is there by now


@dataclasses.dataclass
class _ImageRequest:
    image_rows: int
    make_constraint: None = None


def test_show_memory_prints_a_table(tiny_gemma4_path: Path) -> None:
    def run(*more: str) -> Any:
        return CliRunner().invoke(show_command, [*command, *more])

    command = [str(tiny_gemma4_path), "--memory", "--ctx", "512,1k,max,auto"]
    out = run("--kv", "f16", "--kv-type", "f32")
    assert out.exit_code == 0, out.output
    lines = out.output.splitlines()
    assert lines[0].split()[:3] == ["context", "KV", "weights"]
    assert "available" in lines[-1]
    rows = json.loads(run("--kv", "f32", "--json").output)["memory"]
    assert [row["n_ctx"] for row in rows][:2] == [512, 1024]
    assert {row["kv_type"] for row in rows} == {"f32"}
    parts = ("weights", "kv", "scratch", "runtime", "snapshots", "media", "drafter")
    assert all(row["total"] == sum(row[part] for part in parts) for row in rows)
    assert run("--kv", "f13").exit_code != 0
