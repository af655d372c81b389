"""The commands, run as a user would: stdout, stderr and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

GREEDY = ["--temperature", "0", "-n", "5"]


def gemmule(*arguments: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemmule", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **env}
    return subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", env=environment, check=False
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("gemmule: ")
    assert done.stderr.count("\n") == 1


def test_no_arguments_show_three_examples() -> None:
    done = gemmule()
    assert done.returncode == 0
    assert done.stdout.count("\n  gemmule ") == 3


@pytest.mark.parametrize("command", ["run", "show", "tokenize", "demo", "doctor"])
def test_every_command_has_help(command: str) -> None:
    assert command in gemmule("--help").stdout
    assert "Usage: gemmule" in gemmule(command, "--help").stdout


def test_version_and_near_miss() -> None:
    assert gemmule("--version").stdout.startswith("gemmule ")
    done = gemmule("shwo")
    assert_one_line_error(done, 2)
    assert "'show'" in done.stderr


def test_run_prints_the_answer_only(tiny_gemma3_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "answer.txt"
    done = gemmule("run", tiny_gemma3_path, "ab", *GREEDY, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert out.read_text(encoding="utf-8") == done.stdout[:-1]
    named = gemmule("run", "-m", tiny_gemma3_path, "ab", *GREEDY)
    from_env = gemmule("run", "ab", *GREEDY, GEMMULE_MODEL=str(tiny_gemma3_path))
    piped = gemmule("run", tiny_gemma3_path, *GREEDY, stdin="ab")
    assert named.stdout == from_env.stdout == piped.stdout == done.stdout


def test_run_json_and_stats(tiny_gemma4_path: Path) -> None:
    done = gemmule("run", tiny_gemma4_path, "ab", "-n", "4", "--seed", "9", "--json", "--stats")
    reply = json.loads(done.stdout)
    assert reply["seed"] == 9
    assert len(reply["tokens"]) <= 4
    assert "tokens/s" in done.stderr
    piped = gemmule("run", tiny_gemma4_path, "a", "-n", "1", "--json", stdin="b")
    assert json.loads(piped.stdout)["usage"]["prompt_tokens"] > 2


def test_errors_have_their_codes(tiny_gemma3_path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 60)
    assert_one_line_error(gemmule("run", bad, "hi"), 3)
    near = gemmule("show", tiny_gemma3_path.with_name("tiny-gemma3-f23.gguf"))
    assert_one_line_error(near, 3)
    assert "did you mean" in near.stderr
    assert_one_line_error(gemmule("run", tiny_gemma3_path, "hi", "--temperature", "-1"), 2)
    assert_one_line_error(gemmule("run", tiny_gemma3_path, "hi", "--ctx", "many"), 2)
    assert_one_line_error(gemmule("run", tiny_gemma3_path), 2)
    assert_one_line_error(gemmule("run", tiny_gemma3_path, "a b " * 50, "--ctx", "8"), 2)
    assert "Traceback" in gemmule("-v", "show", bad).stderr
    assert "Traceback" in gemmule("show", bad, "-v").stderr


def test_show(tiny_gemma3_path: Path) -> None:
    assert "gemma3" in gemmule("show", tiny_gemma3_path).stdout
    assert "token_embd.weight" in gemmule("show", tiny_gemma3_path, "--tensors").stdout
    assert gemmule("show", tiny_gemma3_path, "--meta", "general.architecture").stdout == "gemma3\n"
    assert "tokenizer.ggml.tokens = array" in gemmule("show", tiny_gemma3_path, "--meta").stdout
    assert_one_line_error(gemmule("show", tiny_gemma3_path, "--meta", "no.such.key"), 2)
    memory = json.loads(gemmule("show", tiny_gemma3_path, "--memory", "--ctx", "512,1k", "--json").stdout)[
        "memory"
    ]
    assert [row["n_ctx"] for row in memory] == [512, 1024]


def test_tokenize(tiny_gemma3_path: Path) -> None:
    ids = gemmule("tokenize", tiny_gemma3_path, "ab é", "--ids").stdout.split()
    assert gemmule("tokenize", tiny_gemma3_path, "--count", stdin="ab é").stdout == f"{len(ids)}\n"
    rows = json.loads(gemmule("tokenize", tiny_gemma3_path, "ab é", "--json").stdout)["tokens"]
    assert [str(row["id"]) for row in rows] == ids
    assert_one_line_error(gemmule("tokenize", tiny_gemma3_path, "a", "--ids", "--count"), 2)


def test_doctor() -> None:
    done = gemmule("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["checks"]["codecs"] == "passed"
    assert report["isa"]["selected"] in [level["name"] for level in report["isa"]["levels"]]


def test_closed_pipe_is_silent(tiny_gemma3_path: Path) -> None:
    command = [sys.executable, "-m", "gemmule", "show", str(tiny_gemma3_path), "--tensors"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.real_model
def test_ctrl_c_keeps_what_exists(demo_model_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gemmule",
        "run",
        str(demo_model_path),
        "Once upon a time",
        "--seed",
        "1",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.read(1)  # the answer has begun
        began = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
        assert time.monotonic() - began < 5
    assert running.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.real_model
def test_demo(demo_model_path: Path) -> None:
    done = gemmule("demo", "-n", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n> ") == 3
    assert "prefill" in done.stdout
    assert "peak memory" in done.stdout
