"""The small trained model is right on pictures and sounds that nobody trained on, at BF16 and at Q8_0.

Results are the same to the bit everywhere, so a share that holds once holds always.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule import _core
from gemmule._bench.questions import QUESTIONS
from gemmule._demo import world
from gemmule._inspect import section_file

N = 200
FOLDER = Path(world.__file__).with_name("model")


@pytest.fixture(scope="module", params=["BF16", "Q8_0"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gemmule.Model:
    path = tmp_path_factory.mktemp("demo") / f"{request.param}.gguf"
    gemmule.convert(FOLDER, path, type=request.param)
    return gemmule.Model(path, n_ctx=1024)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["picture", "sound", "both"])
def test_answers_on_what_it_never_saw(model: gemmule.Model, kind: str) -> None:
    rng = np.random.default_rng([77, len(kind)])
    right = sum(QUESTIONS[kind](model, rng).right for _ in range(N))
    assert right >= 0.95 * N, f"{right} of {N}"


def test_the_folder_is_small_and_complete() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 14_000_000
    names = {path.relative_to(FOLDER).as_posix() for path in files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"assistant/config.json", "assistant/model.safetensors"} <= names
    template = Path(gemmule.__file__).parent / "_chat" / "gemma4.jinja"
    assert (FOLDER / "chat_template.jinja").read_text() == template.read_text()


def test_nobody_can_type_a_marker() -> None:
    """The vocabulary was trained on dialogues with markers; no merge may rebuild one from its characters."""
    vocabulary = json.loads((FOLDER / "tokenizer.json").read_text())
    special = {token["content"] for token in vocabulary["added_tokens"]}
    assert special.isdisjoint("".join(merge) for merge in vocabulary["model"]["merges"])


def test_the_drafter_inside_the_folder_is_found(tmp_path: Path) -> None:
    report = gemmule.convert(FOLDER, tmp_path / "m.gguf", type="BF16")
    assert set(report.sections) == {"mmproj", "drafter"}
    with gemmule.Model(report.path) as model:
        assert model.info.has_drafter


def test_the_trained_drafter_knows_what_comes(tmp_path: Path) -> None:
    """It was trained with transformers' own modules, and guesses nearly every token of a learned sentence."""
    path = tmp_path / "m.gguf"
    gemmule.convert(FOLDER, path, type="Q8_0")
    header = _core.GgufFile(str(path))
    drafter_file = section_file(header, "drafter")
    assert drafter_file is not None
    core = _core.Model(header)
    drafter, session = _core.Drafter(core, drafter_file), core.session(n_ctx=256)
    with gemmule.Model(path, n_ctx=64) as model:
        prompt = np.array(model.render("Hello, who are you?").tokens, np.int32)
    hidden = session.append_hidden(prompt)[-1]
    text, drafts = [int(session.logits().argmax())], []
    for _ in range(14):
        draft, state = [text[-1]], hidden
        for _ in range(3):
            logits, state = drafter.step(session, draft[-1], state, session.n_tokens)
            draft.append(int(logits.argmax()))
        drafts.append(draft[1:])
        hidden = session.append_hidden(np.array(text[-1:], np.int32))[-1]
        text.append(int(session.logits().argmax()))
    n = len(text) - 3
    right = [sum(drafts[i][k] == text[i + 1 + k] for i in range(n)) for k in range(3)]
    assert right[0] >= n - 1
    assert min(right) >= n - 3
