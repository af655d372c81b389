"""The memory promise: what a model and a context need, which context fits, and a refusal with the numbers.

The core says what each part takes, from the header alone; here the sizes are compared with what is free.
"auto" keeps a tenth of that free, a refusal comes only when nothing is left.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from gemmule import _core
from gemmule._checks import MAX_CONTEXT, byte_size, is_whole, kv_format, whole
from gemmule._errors import NotEnoughMemoryError
from gemmule._types import MemoryPlan, format_bytes

if TYPE_CHECKING:
    from gemmule._request import Request
    from gemmule._tokenizer import Tokenizer

__all__ = [
    "AUTO_SNAPSHOTS",
    "ContextSize",
    "Room",
    "SnapshotLimit",
    "checked_context",
    "choose_plan",
    "largest_context",
    "not_enough",
    "plan_for",
    "snapshot_bytes",
]

ContextSize = int | Literal["auto", "max"]
SnapshotLimit: TypeAlias = int | str  # bytes, text such as 256MB, or "auto"

AUTO_SNAPSHOTS = -1  # as the core takes it

_STEP = 256  # contexts are compared in these steps: global layers keep whole chunks of so many positions
_SPARE = 10  # one part in so many stays free when the context is chosen
_CODE = 16 << 20  # of the package and its libraries, as `gemmule bench memory` measures them
_PER_TOKEN = 120  # bytes of the vocabulary's tables, measured
_PER_TOKEN_SPM = 72  # of a vocabulary with scores (tokenizer.ggml.model is "llama")


def plan_for(
    file: _core.GgufFile,
    *,
    n_ctx: int,
    kv_type: str = "f16",
    mmproj: _core.GgufFile | None = None,
    drafter: _core.GgufFile | None = None,
    snapshot_limit: int = AUTO_SNAPSHOTS,
    packing: bool = True,
    memory_limit: int | None = None,
    reason: str = "",
) -> MemoryPlan:
    """What a file needs with a context of `n_ctx`."""
    n_ctx = whole("n_ctx", n_ctx, 1, MAX_CONTEXT)
    plan = _core.memory_plan(
        file,
        n_ctx=n_ctx,
        kv_type=kv_format(kv_type),
        mmproj=mmproj,
        drafter=drafter,
        snapshot_limit=snapshot_limit,
        packing=packing,
    )
    available, runtime = plan["available"], _runtime(file)
    if memory_limit is not None:
        available = min(available, memory_limit) if available else memory_limit
    return MemoryPlan(
        weights=plan["weights"],
        kv=plan["kv"],
        scratch=plan["scratch"],
        media=plan["media"],
        drafter=plan["drafter"],
        snapshots=plan["snapshots"],
        runtime=runtime,
        total=plan["total"] + runtime,
        available=available,
        n_ctx=n_ctx,
        n_ctx_train=plan["n_ctx_train"],
        kv_type=kv_type,
        reason=reason,
    )


def _runtime(file: _core.GgufFile) -> int:
    """The package, its libraries, and a vocabulary that has been used."""
    kind = file.get("tokenizer.ggml.model") if "tokenizer.ggml.model" in file.keys() else None  # noqa: SIM118
    spm = isinstance(kind, str) and kind == "llama"  # a damaged file may have an array there
    shape = next((shape for name, _, shape, *_ in file.tensors() if name == "token_embd.weight"), (0, 0))
    return _CODE + file.data_offset + shape[-1] * (_PER_TOKEN_SPM if spm else _PER_TOKEN)


def largest_context(need: Callable[[int], int], room: int, most: int) -> int:
    """The largest multiple of 256 up to `most`, or `most` itself, whose need is within `room`; 0: none is."""
    if need(most) <= room:
        return most
    low, high = 0, (most - 1) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if need(middle * _STEP) <= room:
            low = middle
        else:
            high = middle - 1
    return low * _STEP


def checked_context(n_ctx: object) -> ContextSize:
    """A context size that can be asked for."""
    if isinstance(n_ctx, str):
        if n_ctx == "auto":
            return "auto"
        if n_ctx == "max":
            return "max"
        raise ValueError(f'n_ctx must be "auto", "max" or a number of tokens, not {n_ctx!r}')
    return whole("n_ctx", n_ctx, 1, MAX_CONTEXT)


def snapshot_bytes(limit: SnapshotLimit) -> int:
    """A limit of snapshots as the engine takes it."""
    if limit == "auto":
        return AUTO_SNAPSHOTS
    return 0 if is_whole(limit) and limit == 0 else byte_size("snapshot_limit", limit)


def choose_plan(
    file: _core.GgufFile,
    n_ctx: ContextSize,
    *,
    kv_type: str,
    memory_limit: int | None = None,
    mmproj: _core.GgufFile | None = None,
    drafter: _core.GgufFile | None = None,
    snapshot_limit: int = AUTO_SNAPSHOTS,
    packing: bool = True,
) -> MemoryPlan:
    """Settles the context size, or refuses with the numbers.

    "auto" is the largest context up to the trained one with which a tenth of the memory stays free; "max" is
    the trained one.
    """

    def plan(size: int, reason: str = "") -> MemoryPlan:
        return plan_for(
            file,
            n_ctx=size,
            kv_type=kv_type,
            mmproj=mmproj,
            drafter=drafter,
            snapshot_limit=snapshot_limit,
            packing=packing,
            memory_limit=memory_limit,
            reason=reason,
        )

    def largest(most: int, room: int) -> int:
        return largest_context(lambda size: plan(size).total, room, most)

    smallest = plan(1)
    trained, available = smallest.n_ctx_train, smallest.available
    if n_ctx == "auto":
        spare = available // _SPARE
        size = largest(trained, available - spare) if available else trained
        why = "all the model was trained for, and it fits" if size == trained else "the largest that fits"
        size = size or largest(trained, available) or min(trained, _STEP)
        chosen = plan(size, f"{size} of {trained}: {why}, a tenth of the memory kept free; n_ctx changes it")
    elif n_ctx == "max":
        chosen = plan(trained, f"{trained}: all the model was trained for")
    else:
        above = f", above the trained {trained}" if n_ctx > trained else ""
        chosen = plan(n_ctx, f"{n_ctx} of {trained}: as asked{above}")
    if available and chosen.total > available:
        raise not_enough(
            f"{file.path} with a context of {chosen.n_ctx} tokens",
            chosen.total,
            available,
            largest(chosen.n_ctx, available),
            "allowed" if available == memory_limit else "available",
        )
    return chosen


def not_enough(what: str, need: int, have: int, n_ctx: int, word: str = "available") -> NotEnoughMemoryError:
    """The refusal, with the largest context that fits (0: none does)."""
    if n_ctx:
        fix = f"n_ctx={n_ctx} is the largest context that fits"
    else:
        fix = "no context fits, so choose a smaller model or quantization, or close other programs"
    return NotEnoughMemoryError(
        f"{what} needs {format_bytes(need)} and only {format_bytes(max(0, have))} are {word}; {fix}",
        need=need,
        have=max(0, have),
        n_ctx=n_ctx,
    )


@dataclasses.dataclass(slots=True)
class Room:
    """What sessions of one open model may still take.

    Weights that are not in memory of their own yet will be needed besides (they are in the page cache, which
    the system counts as free), and so will positions that other sessions were promised and have not used.
    """

    file: _core.GgufFile
    plan: MemoryPlan
    memory_limit: int | None
    image_rows: int = 280  # of the largest image so far; one of the usual detail is in the plan

    def kv(self, n_ctx: int, kv_type: str) -> int:
        """Bytes of keys and values of a session."""
        kv: int = _core.memory_plan(self.file, n_ctx=n_ctx, kv_type=kv_type)["kv"]
        return kv

    def left(self, packed_bytes: int, others: Sequence[tuple[int, int]]) -> int | None:
        """Bytes for one more session, beside others by the bytes they hold and use. None: nobody knows."""
        reserved = sum(held for held, _ in others)
        unused = sum(max(0, held - used) for held, used in others)
        free: int = _core.available_memory()
        rooms = []
        if free:
            rooms.append(free - max(0, self.plan.weights + self.plan.drafter - packed_bytes) - unused)
        if self.memory_limit is not None:
            rooms.append(self.memory_limit - (self.plan.total - self.plan.kv) - reserved)
        return min(rooms, default=None)

    def context(self, wanted: int, least: int, kv_type: str, left: int | None) -> int:
        """The context of a new session: `wanted`, or the largest that fits and has `least` tokens.

        Throws NotEnoughMemoryError.
        """
        if left is None or self.kv(wanted, kv_type) <= left:
            return wanted
        fits = largest_context(lambda size: self.kv(size, kv_type), left, wanted)
        if fits < least:
            raise not_enough(
                f"a context of {least} tokens (keys and values)", self.kv(least, kv_type), left, fits
            )
        return fits

    def extra(self, request: "Request", tokenizer: "Tokenizer", n_ctx: int, kv_type: str) -> int:
        """Bytes that a request needs beyond the plan: for images of more than the usual detail, and for the
        first grammar, which wants the vocabulary in a form of its own.
        """
        n_bytes = 0
        if request.make_constraint is not None:
            from gemmule._chat.grammar import guidance_memory

            n_bytes += guidance_memory(tokenizer)
        if request.image_rows > self.image_rows:
            n_bytes += _core.image_memory(self.file, request.image_rows, n_ctx=n_ctx, kv_type=kv_type)
        return n_bytes

    def allow(self, request: "Request", need: int, left: int | None) -> None:
        """Settles that a request takes `need` bytes beyond the plan. Throws NotEnoughMemoryError."""
        if left is not None and need > left:
            what, fix = "a grammar, a schema or tools need", "ask for plain text"
            if request.image_rows > self.image_rows:
                what, fix = f"an image of {request.image_rows} tokens needs", "use fewer image_tokens"
            have = max(0, left)
            raise NotEnoughMemoryError(
                f"{what} {format_bytes(need)} more and only {format_bytes(have)} are available; {fix}, or "
                "close other sessions or programs",
                need=need,
                have=have,
                n_ctx=self.plan.n_ctx,
            )
        self.image_rows = max(self.image_rows, request.image_rows)
