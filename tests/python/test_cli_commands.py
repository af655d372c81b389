"""The commands, run as a user would: stdout, stderr and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gguf_parts import media_image, text_image, write_image

GREEDY = ["--raw", "--temperature", "0", "-n", "5"]


def gemmule(
    *arguments: object, stdin: str = "", folder: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemmule", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **env}
    return subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", env=environment, check=False, cwd=folder
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("gemmule: ")
    assert done.stderr.count("\n") == 1


def test_no_arguments_show_examples() -> None:
    done = gemmule()
    assert done.returncode == 0
    assert done.stdout.count("\n  gemmule ") == 4


COMMANDS = ["run", "convert", "quantize", "imatrix", "bundle", "split", "pack", "unpack", "verify", "show"]


@pytest.mark.parametrize("command", [*COMMANDS, "chat", "demo", "doctor", "tokenize"])
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
    assert gemmule("show", tiny_gemma3_path, "--key", "general.architecture").stdout == "gemma3\n"
    assert "tokenizer.ggml.tokens = array" in gemmule("show", tiny_gemma3_path, "--meta").stdout
    assert (
        gemmule("show", "--meta", tiny_gemma3_path).stdout
        == gemmule("show", tiny_gemma3_path, "--meta").stdout
    )
    assert_one_line_error(gemmule("show", tiny_gemma3_path, "--key", "no.such.key"), 2)
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


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GEMMULE": f"{sys.executable} -m gemmule", **env}
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, encoding="utf-8", env=environment, check=False
    )


def test_an_output_that_cannot_be_written_is_found_before_loading(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 60)
    done = gemmule("run", bad, "hi", "-o", tmp_path / "none" / "x.txt")
    assert_one_line_error(done, 2)
    assert "--output" in done.stderr
    assert_one_line_error(gemmule("run", bad, "hi", "-o", tmp_path), 2)


def test_output_is_replaced_only_by_an_answer(tiny_gemma3_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "answer.txt"
    out.write_text("older", encoding="utf-8")
    out.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(out)
    assert gemmule("run", tiny_gemma3_path, "ab", "-n", "0", "-o", link).returncode == 0
    assert out.read_text(encoding="utf-8") == "older"
    done = gemmule("run", tiny_gemma3_path, "ab", *GREEDY, "-o", link)
    assert done.returncode == 0, done.stderr
    assert out.read_text(encoding="utf-8") == done.stdout[:-1]
    assert link.is_symlink()
    assert out.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.txt", "link.txt"]
    assert gemmule("run", tiny_gemma3_path, "ab", *GREEDY, "-o", os.devnull).returncode == 0


def test_closed_streams(tiny_gemma3_path: Path) -> None:
    closed_errors = shell("$GEMMULE run no-such-file.gguf hi 2>&-")
    assert (closed_errors.returncode, closed_errors.stdout) == (3, "")
    answer = shell(f"$GEMMULE run '{tiny_gemma3_path}' ab -n 3 --seed 1 --stats 2>&-")
    assert (answer.returncode, answer.stderr) == (0, "")
    closed_answer = shell(f"$GEMMULE run '{tiny_gemma3_path}' ab -n 3 --seed 1 >&-")
    assert (closed_answer.returncode, closed_answer.stdout, closed_answer.stderr) == (0, "", "")
    nothing = shell(f"$GEMMULE run '{tiny_gemma3_path}' ab -n 3 --seed 1 <&- >&- 2>&-")
    assert nothing.returncode == 0


@pytest.mark.parametrize("moment", ["gemmule.cli", "numpy", "gemmule._core"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ImportError, SystemError])
def test_ctrl_c_while_importing_is_silent(
    tiny_gemma3_path: Path, tmp_path: Path, moment: str, error: type[BaseException]
) -> None:
    # An import hook sends the signal when the module is asked for, and may turn it into another error.
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import builtins, os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(10**6): pass
            except KeyboardInterrupt:
                raise {error.__name__}("interrupted") from None
sys.meta_path.insert(0, Finder())
""",
        encoding="utf-8",
    )
    done = gemmule("run", tiny_gemma3_path, "hi", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_bad_options_are_named_before_loading(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 60)
    for option, value in (
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "7"),
        ("--min-p", "-1"),
        ("--seed", str(2**64)),
        ("--top-k", str(2**40)),
        ("--stop", ""),
        ("--ctx", "9" * 21),
        ("--ctx", "9" * 5000),
        ("--ctx", "99999k"),
        ("--ctx", "0"),
        ("--threads", "1025"),
        ("--device", "gpu"),
    ):
        done = gemmule("run", bad, "hi", option, value)
        assert_one_line_error(done, 2)
        assert option in done.stderr, done.stderr


def test_errors_name_options_and_variables(tiny_gemma3_path: Path) -> None:
    long = gemmule("run", tiny_gemma3_path, "a b " * 50, "--ctx", "8")
    assert "larger --ctx" in long.stderr
    assert_one_line_error(long, 2)
    for name in ("GEMMULE_CTX", "GEMMULE_DEVICE", "GEMMULE_THREADS"):
        done = gemmule("run", tiny_gemma3_path, "hi", **{name: "many"})
        assert_one_line_error(done, 2)
        assert done.stderr.startswith(f"gemmule: {name}: ")
    assert_one_line_error(gemmule("show", tiny_gemma3_path, "--memory", "--ctx", "many"), 2)


def test_the_model_may_come_from_the_environment(tiny_gemma3_path: Path) -> None:
    model = {"GEMMULE_MODEL": str(tiny_gemma3_path)}
    assert gemmule("show", **model).stdout == gemmule("show", tiny_gemma3_path).stdout
    ids = gemmule("tokenize", tiny_gemma3_path, "ab", "--ids").stdout
    assert gemmule("tokenize", "ab", "--ids", **model).stdout == ids
    assert gemmule("tokenize", "--ids", stdin="ab", **model).stdout == ids
    assert gemmule("tokenize", "-m", tiny_gemma3_path, "ab", "--ids").stdout == ids
    for command in (["run"], ["show"], ["show", ""], ["tokenize"]):
        assert_one_line_error(gemmule(*command, GEMMULE_MODEL=""), 2)


def test_what_is_no_model_file(tiny_gemma3_path: Path, tmp_path: Path) -> None:
    device = gemmule("show", os.devnull)
    assert_one_line_error(device, 3)
    assert "not a regular file" in device.stderr
    (tmp_path / "gemma-small.gguf").touch()
    near = gemmule("show", "gemma-smal", GEMMULE_MODELS_DIR=str(tmp_path))
    assert_one_line_error(near, 3)
    assert str(tmp_path / "gemma-small.gguf") in near.stderr


def test_piped_text_loses_its_mark_and_last_line_end(tiny_gemma3_path: Path) -> None:
    ids = gemmule("tokenize", tiny_gemma3_path, "ab", "--ids").stdout
    for text in ("ab\n", "ab\r\n", "\ufeffab"):
        assert gemmule("tokenize", tiny_gemma3_path, "--ids", stdin=text).stdout == ids
    assert gemmule("tokenize", tiny_gemma3_path, "--ids", stdin="ab\n\n").stdout != ids
    plain = gemmule("run", tiny_gemma3_path, "ab", *GREEDY).stdout
    assert gemmule("run", tiny_gemma3_path, "-", *GREEDY, stdin="ab\n").stdout == plain


def test_doctor_reports_the_forced_level_and_the_demo_file(tmp_path: Path) -> None:
    from gemmule._demo_weights import DEMO_FILE

    report = doctor_facts(GEMMULE_CPU_ISA="scalar", GEMMULE_MODELS_DIR=str(tmp_path))
    assert report["isa"]["selected"] == "scalar"
    assert report["demo_file"] is None
    (tmp_path / DEMO_FILE).touch()
    assert doctor_facts(GEMMULE_MODELS_DIR=str(tmp_path))["demo_file"] == str(tmp_path / DEMO_FILE)
    wrong = gemmule("doctor", GEMMULE_CPU_ISA="abacus")
    assert_one_line_error(wrong, 4)
    assert "GEMMULE_CPU_ISA" in wrong.stderr


def doctor_facts(**env: str) -> dict[str, Any]:
    """The facts alone: the checks would run the demo model."""
    code = "import json; from gemmule.cli.doctor import _facts; print(json.dumps(_facts()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, **env}, check=True
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_is_told_the_context(tiny_gemma3_path: Path, quiet: bool) -> None:
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "gemmule", "run", str(tiny_gemma3_path), "ab", *GREEDY]
    done = subprocess.run(
        [*command, *(["-q"] if quiet else [])],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave, check=False,
    )  # fmt: skip
    os.write(slave, b"end\n")
    said = ""
    while "end" not in said:  # the terminal hands over what it has so far
        said += os.read(master, 10000).decode()
    os.close(slave)
    os.close(master)
    assert done.returncode == 0
    assert said.startswith("context ") is not quiet, said
    assert said.count("\n") == (1 if quiet else 2)


def test_convert_says_what_is_wrong(tiny_gemma3_path: Path, tmp_path: Path) -> None:
    source = tiny_gemma3_path
    for arguments, code, words in (
        (["--size", "7,5GB"], 2, "7.5GB"),
        (["--size", "1KB"], 2, "1,000 bytes cannot be reached"),
        (["--size", "1GB", "-q", "Q8_0"], 2, "leave -q out"),
        (["Q4_K_M"], 2, "-q"),
        (["missing/"], 2, "create it"),
        (["missing/a.gguf"], 2, "create it"),
        (["a.gguf", "-q", "Q8_0", "-q", "Q4_0"], 2, "create it"),
        (["/dev/null", "-f"], 2, "not a regular file"),
        (["--tensor-type", "norms=Q8_0"], 2, "blk.N.ffn_down.weight"),
    ):
        for command in ("convert", "quantize"):
            done = gemmule(command, source, *arguments, folder=tmp_path)
            assert_one_line_error(done, code)
            assert words in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = gemmule("quantize", source, tmp_path, "--bpw", "16")
    assert done.returncode == 0, done.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".gguf"]


def test_show_of_a_media_part(tmp_path: Path) -> None:
    done = gemmule("show", write_image(tmp_path / "mmproj.gguf", media_image()))
    assert "clip" in done.stdout
    assert "context" not in done.stdout


def test_imatrix_names_its_option(tiny_gemma3_path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab", encoding="utf-8")
    done = gemmule("imatrix", tiny_gemma3_path, tmp_path / "text.txt", "-o", tmp_path / "out")
    assert_one_line_error(done, 2)
    assert "a smaller --ctx." in done.stderr
    (tmp_path / "text.txt").write_text("ab " * 40, encoding="utf-8")
    done = gemmule(
        "imatrix", tiny_gemma3_path, tmp_path / "text.txt", "-o", tmp_path / "out", "--ctx", "16", "--json"
    )
    assert json.loads(done.stdout)["n_windows"] >= 1


def test_bundle_and_split(tmp_path: Path) -> None:
    text = write_image(tmp_path / "text.gguf", text_image())
    media = write_image(tmp_path / "media.gguf", media_image())
    one = tmp_path / "one.gguf"
    assert_one_line_error(gemmule("bundle", text, text, "-o", one), 2)
    assert_one_line_error(gemmule("bundle", text, media, media, "-o", one), 2)
    done = gemmule("bundle", text, media, "-o", one, "--json")
    assert list(json.loads(done.stdout)["sections"]) == ["mmproj"]
    assert json.loads(gemmule("verify", one, "--json").stdout)["ok"]
    done = gemmule("split", one, "--json")
    assert [Path(path).name for path in json.loads(done.stdout)] == ["one-text.gguf", "mmproj-one.gguf"]
    raw = bytearray(one.read_bytes())
    raw[-1] ^= 1
    one.write_bytes(raw)
    done = gemmule("verify", one)
    assert done.returncode == 7
    assert "mmproj" in done.stderr
