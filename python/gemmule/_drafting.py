"""Drafting: tokens that are expected are run ahead in one pass; see docs/DRAFTING.md. Here: the option, the
drafts of one request, and the times and chances that a model has learnt, which are kept in the cache folder.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from gemmule import _core
from gemmule._cache import atomic_write, cache_dir
from gemmule._checks import whole
from gemmule._inspect import weights_read
from gemmule._roofline import Roofline

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DraftCounts", "DraftOption", "Drafts"]

DraftOption: TypeAlias = bool | int | Literal["auto", "mtp", "lookup"]

_MOST = 12  # drafts in one pass
_FEW_PASSES = 64  # say too little to be kept
_MANY_PASSES = 2048  # after which what was learnt is kept while the model is still in use


class DraftCounts(NamedTuple):
    """Of one request: tokens run ahead, those that were then chosen, and the share of right ones by place."""

    drafted: int = 0
    accepted: int = 0
    acceptance: tuple[float, ...] = ()

    @classmethod
    def of(cls, drafting: _core.Drafting) -> "DraftCounts":
        acceptance = tuple(right / reached for reached, right in drafting.by_place)
        return cls(drafting.n_drafted, drafting.n_accepted, acceptance)


class Drafts:
    """What the requests of one model share."""

    def __init__(self, model: _core.Model, drafter: _core.Drafter | None, roofline: Roofline) -> None:
        self.drafter = drafter
        self._guess = partial(_passes, model.file, model.n_threads, roofline)
        self._facts = [
            model.architecture, model.name, model.n_params, model.weight_bytes, model.isa, model.n_threads,
            0 if drafter is None else drafter.weight_bytes, platform.node(), platform.machine(),
        ]  # fmt: skip
        self._table: _core.DraftTable | None = None
        self._n_kept = 0  # passes that the kept table has learnt from

    def check(self, option: Any) -> DraftOption:
        """The option, if it is one and this model can do it."""
        if isinstance(option, bool):
            return "auto" if option else False
        if not isinstance(option, str):
            return whole("draft", option, 0, _MOST)
        if option == "mtp" and self.drafter is None:
            raise ValueError(
                "draft='mtp' needs a drafter and this model has none; give the model one, or use 'auto'"
            )
        if option not in ("auto", "mtp", "lookup"):
            raise ValueError(f"draft must be 'auto', 'mtp', 'lookup', False or a number, not {option!r}")
        return option  # type: ignore[return-value]

    def start(
        self, option: DraftOption, sampler: _core.Sampler, n_prompt: int, ends: Iterable[int]
    ) -> _core.Drafting | None:
        """The drafts of one request; None for none."""
        if option is False or option == 0:
            return None
        drafter = None if option == "lookup" else self.drafter
        return _core.Drafting(
            self.table,
            sampler,
            n_prompt=n_prompt,
            ends=sorted(ends),
            drafter=drafter,
            lookup=option != "mtp" and not (isinstance(option, int) and drafter is not None),
            length=option if isinstance(option, int) else 0,
        )

    @property
    def table(self) -> _core.DraftTable:
        """Times and chances: of the last run; before the first one, passes of this machine's roofline."""
        if self._table is None:
            self._table = _core.DraftTable(self._guess())
            # Without it, or with one of another version, things are learnt again.
            with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RuntimeError):
                self._table.numbers = json.loads(self._path.read_bytes())["numbers"]
        return self._table

    def keep(self, *, at_end: bool = False) -> None:
        """Writes what was learnt, if that is much. A failure only costs the time to learn it again."""
        n = 0 if self._table is None else self._table.n_passes
        if self._table is None or n - self._n_kept < (_FEW_PASSES if at_end else _MANY_PASSES):
            return
        self._n_kept = n
        numbers = [round(number, 5) for number in self._table.numbers]
        with contextlib.suppress(OSError, RuntimeError), atomic_write(self._path) as file:  # no home folder
            file.write(json.dumps({"of": self._facts, "numbers": numbers}).encode())

    def close(self) -> None:
        """Keeps what was learnt and lets the drafter go."""
        self.keep(at_end=True)
        self.drafter = None

    @property
    def _path(self) -> "Path":
        name = hashlib.sha256(json.dumps(self._facts).encode()).hexdigest()[:32]
        return cache_dir() / "draft" / f"{name}.json"


def _passes(file: _core.GgufFile, n_threads: int, roofline: Roofline) -> list[float]:
    """V(1), V(2), ... of this machine; empty where they were not measured."""
    # The tokens of a pass use different experts, so what it reads grows with them: not what was measured.
    has_experts = any("_exps." in name for name, *_ in file.tensors())
    return [] if has_experts else roofline.passes(weights_read(file), n_threads, _MOST + 1)
