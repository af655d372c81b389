"""What a drafter drafts, against stored float32 results of transformers; equal bits; where it comes from.

One drafter per kind: of a 12B (global keys are part of the values), of an E2B (layers that share keys, a head
with clusters) and of a 26B. Each .npz is a round of steps behind a prompt longer than the window, and comes
from tools/make_drafter_golden.py. The reference sees the same positions as ours: its sliding layers read what
the target's own cache keeps, the window less the token that is drafted for.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import gemmule
from gemmule import _core

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
KINDS = {
    "12b": ("tiny-gemma4-f32", "tiny-gemma4-drafter-f32"),
    "e2b": ("tiny-gemma4-e2b-f16", "tiny-gemma4-e2b-drafter-f16"),
    "26b": ("tiny-gemma4-26b-f16", "tiny-gemma4-26b-drafter-f16"),
}
BOUND = 1e-4
Round = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, logits, hidden states


def _load(kind: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{KINDS[kind][1]}.npz") as data:
        return {name: data[name] for name in data.files}


def _gguf(name: str) -> str:
    return str(GOLDEN / f"{name}.gguf")


def _draft(
    session: _core.Session, drafter: _core.Drafter, token: int, hidden: np.ndarray, n_steps: int
) -> Round:
    """A round at the end of a session; every step but the first takes the likeliest token."""
    tokens, logits, states = [], [], []
    for _ in range(n_steps):
        row, hidden = drafter.step(session, token, hidden, session.n_tokens)
        tokens.append(token)
        logits.append(row)
        states.append(hidden)
        token = int(row.argmax())
    return np.array(tokens, np.int32), np.stack(logits), np.stack(states)


def _run(
    kind: str, *, kv_type: str = "f32", chunk: int = 0, draft_vocab: int = 0, **options: object
) -> Round:
    golden = _load(kind)
    target, name = KINDS[kind]
    model = _core.Model(_gguf(target), **options)
    drafter = _core.Drafter(model, _core.GgufFile(_gguf(name)), draft_vocab=draft_vocab)
    session = model.session(n_ctx=128, kv_type=kv_type)
    ids = golden["ids"]
    step = chunk or len(ids)
    hidden = np.concatenate([session.append_hidden(ids[i : i + step]) for i in range(0, len(ids), step)])
    return _draft(session, drafter, int(golden["token"][0]), hidden[-1], len(golden["token"]))


def _error(value: np.ndarray, reference: np.ndarray) -> float:
    assert value.shape == reference.shape
    return float((np.abs(value - reference).max(axis=1) / np.abs(reference).max(axis=1)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_matches_the_reference(kind: str) -> None:
    golden = _load(kind)
    tokens, logits, hidden = _run(kind)
    assert tokens.tolist() == golden["token"].tolist()
    assert len(set(tokens.tolist())) > 2
    assert _error(logits, golden["logits"]) < BOUND
    assert _error(hidden, golden["next_hidden"]) < BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_ends_as_the_reference_says(kind: str) -> None:
    golden = _load(kind)
    session = _core.Model(_gguf(KINDS[kind][0])).session(n_ctx=128, kv_type="f32")
    hidden = session.append_hidden(golden["ids"])[-1:]
    assert _error(hidden, golden["hidden"][None]) < BOUND
    assert int(session.logits().argmax()) == golden["token"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_the_same_bits(kind: str) -> None:
    expected = _run(kind, n_threads=1, isa="scalar")
    levels = [level["name"] for level in _core.cpu_info()["levels"] if level["supported"]]
    for options in (
        *({"isa": isa, "n_threads": 2} for isa in levels),
        {"n_ubatch": 3, "n_threads": 2},
        {"chunk": 7, "packing": "always"},
        {"packing": "never", "n_threads": 1},
    ):
        for ours, theirs in zip(_run(kind, **options), expected, strict=True):
            assert ours.tobytes() == theirs.tobytes(), options


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_cache_of_fewer_bits_stays_close(kv_type: str) -> None:
    tokens, logits, _ = _run("12b", kv_type=kv_type)
    golden = _load("12b")
    assert tokens[0] == golden["token"][0]
    assert _error(logits[:1], golden["logits"][:1]) < (2e-2 if kv_type == "f16" else 2e-1)


def test_a_drafter_writes_nothing() -> None:
    golden = _load("12b")
    model = _core.Model(_gguf(KINDS["12b"][0]))
    drafter = _core.Drafter(model, _core.GgufFile(_gguf(KINDS["12b"][1])))
    plain, drafted = (model.session(n_ctx=128) for _ in range(2))
    hidden = [session.append_hidden(golden["ids"])[-1] for session in (plain, drafted)]
    _draft(drafted, drafter, 7, hidden[1], 3)
    for token in (7, 9, 11):
        rows = [session.append_logits(np.array([token], np.int32)) for session in (plain, drafted)]
        assert rows[0].tobytes() == rows[1].tobytes()
        hidden = drafted.append_hidden(np.array([5], np.int32))[-1]
        plain.append(np.array([5], np.int32))
        _draft(drafted, drafter, token, hidden, 2)


def test_after_a_rewind_drafts_are_those_of_a_fresh_session() -> None:
    ids = _load("12b")["ids"]
    model = _core.Model(_gguf(KINDS["12b"][0]), n_ubatch=8)
    drafter = _core.Drafter(model, _core.GgufFile(_gguf(KINDS["12b"][1])))
    fresh, used = (model.session(n_ctx=1024, snapshot_limit=0) for _ in range(2))
    hidden = fresh.append_hidden(ids)[-1]
    expected = _draft(fresh, drafter, 7, hidden, 3)
    used.append(ids)
    used.append(np.full(300, 9, np.int32))
    used.rewind(len(ids))
    with pytest.raises(ValueError, match="holds the keys of"):  # the rings have other positions by now
        drafter.step(used, 7, hidden, len(ids))
    used.rewind(0)
    used.append(ids)
    for ours, theirs in zip(_draft(used, drafter, 7, hidden, 3), expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_a_short_vocabulary_leaves_out_the_rest() -> None:
    _, whole, _ = _run("12b")
    _, short, _ = _run("12b", draft_vocab=100)
    assert short[0, :100].tobytes() == whole[0, :100].tobytes()
    assert np.isneginf(short[:, 100:]).all()
    for n in (-1, 513):
        with pytest.raises(ValueError, match="draft_vocab"):
            _run("12b", draft_vocab=n)
    with pytest.raises(ValueError, match="draft_vocab"):  # its head has clusters
        _run("e2b", draft_vocab=100)


def test_clusters_leave_one_less_than_the_least() -> None:
    _, logits, _ = _run("e2b")
    for row in logits:
        least = row.min()
        chosen = row[row > least]
        assert len(chosen) == 3 * 384 // 24
        assert least == np.float32(chosen.min() - np.float32(1))


def test_steps_that_cannot_be_are_refused() -> None:
    golden = _load("12b")
    model, other = (_core.Model(_gguf(KINDS["12b"][0])) for _ in range(2))
    drafter = _core.Drafter(model, _core.GgufFile(_gguf(KINDS["12b"][1])))
    session = model.session(n_ctx=128)
    hidden = session.append_hidden(golden["ids"])[-1]
    n = session.n_tokens
    for token, states, pos in (
        (-1, hidden, n),
        (512, hidden, n),
        (5, hidden[:-1], n),
        (5, hidden[None], n),
        (5, hidden, 0),
        (5, hidden, -1),
        (5, hidden, n + 1),
    ):
        with pytest.raises(ValueError, match=r".+"):
            drafter.step(session, token, states, pos)
    with pytest.raises(ValueError, match="another model"):
        drafter.step(other.session(n_ctx=128), 5, hidden, n)


# -- damaged files --


def _damaged(folder: Path, raw: bytes) -> str:
    """What loading a damaged drafter and a step of it say; "" when both work."""
    path = folder / "damaged.gguf"
    path.write_bytes(raw)
    model = _core.Model(_gguf(KINDS["e2b"][0]), n_threads=1)
    session = model.session(n_ctx=64)
    hidden = session.append_hidden(_load("e2b")["ids"])[-1]
    try:
        _draft(session, _core.Drafter(model, _core.GgufFile(str(path))), 5, hidden, 2)
    except (gemmule.Error, ValueError) as error:
        message = str(error)
        assert message.strip()
        assert "\n" not in message
        assert len(message) < 600
        return message
    return ""


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    good = Path(_gguf(KINDS["e2b"][1])).read_bytes()
    for n in [0, 4, 23, 100, 2000, *range(3000, len(good), len(good) // 8), len(good) - 1]:
        assert _damaged(tmp_path, good[:n])
    assert not _damaged(tmp_path, good)


def test_flipped_bytes_never_end_the_process(tmp_path: Path) -> None:
    path = Path(_gguf(KINDS["e2b"][1]))
    good, header = path.read_bytes(), _core.GgufFile(str(path)).data_offset
    rng = np.random.default_rng(4)
    messages = []
    for place in rng.integers(header, size=80):
        raw = bytearray(good)
        raw[place] ^= 1 << int(rng.integers(8))
        messages.append(_damaged(tmp_path, bytes(raw)))
    assert 10 < sum(map(bool, messages)) < 80


# -- where it comes from --


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(_gguf(KINDS["12b"][0]), tmp_path / "tiny.gguf")
    return tmp_path


def _open(folder: Path, **options: object) -> gemmule.Model:
    return gemmule.Model(folder / "tiny.gguf", n_ctx=64, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mtp-tiny.gguf", "assistant-tiny.gguf", "some-assistant-Q8_0.gguf"])
def test_a_drafter_beside_the_model_is_found(folder: Path, name: str) -> None:
    assert not _open(folder).info.has_drafter
    shutil.copy(_gguf(KINDS["12b"][1]), folder / name)
    with _open(folder) as model:
        assert model.info.has_drafter
        assert model.plan.drafter > (folder / name).stat().st_size // 2
        assert "drafter" in str(model.plan)
        with _open(folder, drafter=False) as without:
            assert not without.info.has_drafter
            assert model.plan.total - without.plan.total == model.plan.drafter


def test_a_drafter_of_another_model_is_passed_over_but_not_taken(folder: Path) -> None:
    other = folder / "assistant-tiny.gguf"
    shutil.copy(_gguf(KINDS["e2b"][1]), other)
    (folder / "mtp-broken.gguf").write_bytes(b"GGUF")
    assert not _open(folder).info.has_drafter
    with pytest.raises(gemmule.FormatError, match="give the drafter of the same model"):
        _open(folder, drafter=other)
    shutil.copy(_gguf(KINDS["12b"][1]), folder / "mtp-good.gguf")
    assert _open(folder).info.has_drafter


def test_a_damaged_drafter_stops_only_who_asked_for_it(folder: Path) -> None:
    damaged = folder / "mtp-tiny.gguf"
    damaged.write_bytes(Path(_gguf(KINDS["12b"][1])).read_bytes().replace(b"nextn.pre_", b"nextn.qre_"))
    with _open(folder) as model, _open(folder, drafter=False) as without:
        assert not model.info.has_drafter
        assert model.plan.total == without.plan.total
        model.generate([2, 5, 6], max_tokens=2)
    with pytest.raises(gemmule.FormatError, match="pre_projection"):
        _open(folder, drafter=damaged)


def test_of_several_drafters_the_one_with_the_name_is_taken(folder: Path) -> None:
    for name in ("mtp-a.gguf", "mtp-b.gguf"):
        shutil.copy(_gguf(KINDS["12b"][1]), folder / name)
    assert not _open(folder).info.has_drafter
    shutil.copy(_gguf(KINDS["12b"][1]), folder / "assistant-tiny.gguf")
    assert _open(folder).info.has_drafter


def test_a_drafter_inside_the_file_is_found(folder: Path) -> None:
    both = folder / "both.gguf"
    gemmule.bundle(folder / "tiny.gguf", dst=both, drafter=_gguf(KINDS["12b"][1]))
    with gemmule.Model(both, n_ctx=64) as model:
        assert model.info.has_drafter
        assert gemmule.inspect(both).has_drafter
        assert model.plan.drafter == gemmule.estimate(both, n_ctx=64).drafter
    parts = gemmule.split(both, folder / "parts")
    assert [Path(part).name for part in parts] == ["both.gguf", "assistant-both.gguf"]
    assert gemmule.Model(folder / "parts" / "both.gguf", n_ctx=64).info.has_drafter


def test_a_model_is_no_drafter(folder: Path) -> None:
    with pytest.raises(gemmule.UnsupportedError, match="gemma4-assistant"):
        _open(folder, drafter=folder / "tiny.gguf")
    with pytest.raises(gemmule.UnsupportedError, match="gemma4 model"):
        gemmule.Model(_gguf("tiny-gemma3-f32"), drafter=_gguf(KINDS["12b"][1]))
    with pytest.raises(gemmule.UnsupportedError, match="gemma3 and gemma4 text models"):
        gemmule.Model(_gguf(KINDS["12b"][1]))
