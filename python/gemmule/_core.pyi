# Generated from the built core by tools/gen_stubs.py (`make stubs`). Do not edit.
# ruff: noqa
"""The C++ core of gemmule. Use the classes of the gemmule package."""

import collections.abc
import typing

import numpy
import numpy.typing
import typing_extensions

__all__: list[str] = [
    "DraftTable",
    "Drafter",
    "Drafting",
    "Encoder",
    "GgufFile",
    "ImportanceCollector",
    "MediaEmbedder",
    "Model",
    "Sampler",
    "Session",
    "StopToken",
    "StringIndex",
    "Xxh64",
    "append_together",
    "available_memory",
    "block_size",
    "build_info",
    "check_drafter",
    "cpu_info",
    "dequantize",
    "image_memory",
    "measure_roofline",
    "memory_plan",
    "pack_rows",
    "quantize",
    "unpack_rows",
]

class GgufFile:
    """The validated header of a GGUF file."""

    def __init__(
        self,
        path: str,
        offset: typing.SupportsInt | typing.SupportsIndex = 0,
        size: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def get(self, key: str) -> typing.Any:
        """The value: int, float, bool, str, numpy array or list of str."""

    def get_token_bytes(self, key: str) -> list[typing.Any]:
        """A string array as raw bytes."""

    def keys(self) -> list[str]: ...
    def tensors(self) -> list[typing.Any]:
        """(name, type, shape with the contiguous dimension first, offset, bytes, layout) of each tensor."""

    def type_of(self, key: str) -> str:
        """ "u32", "string", "array[string] x 262144", ..."""

    @property
    def alignment(self) -> int: ...
    @property
    def data_offset(self) -> int: ...
    @property
    def file_size(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...

class StringIndex:
    """A string array that is searched where it lies in the file."""

    def __getitem__(self, i: typing.SupportsInt | typing.SupportsIndex) -> bytes: ...
    @typing.overload
    def __init__(self, file: GgufFile, key: str) -> None: ...
    @typing.overload
    def __init__(self, items: collections.abc.Sequence[bytes]) -> None: ...
    def __len__(self) -> int: ...
    def find(self, text: bytes) -> int | None:
        """The position of a string, the last one of equal ones, or None."""

    def find_inside(self, text: bytes) -> list[typing.Any]:
        """(position, string) of all items that are part of a UTF-8 text, cut between characters."""

    @property
    def first_not_utf8(self) -> int | None: ...
    @property
    def first_repeated(self) -> int | None: ...

class StopToken:
    """A flag that ends a computation from any thread."""

    def __init__(self, follows: StopToken | None = None) -> None: ...
    def cancel(self) -> None: ...
    def reset(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...

class Model:
    """A loaded model; sessions share it."""

    @typing.overload
    def __init__(
        self,
        path: str,
        *,
        n_threads: typing.SupportsInt | typing.SupportsIndex = 0,
        isa: str = "",
        n_ubatch: typing.SupportsInt | typing.SupportsIndex = 256,
        packing: str = "auto",
        decode_threads: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    @typing.overload
    def __init__(
        self,
        file: GgufFile,
        *,
        n_threads: typing.SupportsInt | typing.SupportsIndex = 0,
        isa: str = "",
        n_ubatch: typing.SupportsInt | typing.SupportsIndex = 256,
        packing: str = "auto",
        decode_threads: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def load_session(
        self,
        path: str,
        *,
        n_ctx: typing.SupportsInt | typing.SupportsIndex = 0,
        snapshot_limit: typing.SupportsInt | typing.SupportsIndex = -1,
        stop: StopToken | None = None,
    ) -> tuple[typing.Any, ...]:
        """A session from a file, and the bytes that were saved with it. n_ctx 0: as saved."""

    def session(
        self,
        *,
        n_ctx: typing.SupportsInt | typing.SupportsIndex,
        kv_type: str = "f16",
        snapshot_limit: typing.SupportsInt | typing.SupportsIndex = -1,
    ) -> Session:
        """A new timeline. snapshot_limit: bytes for going back without reading again; 0: none, -1: chosen."""

    @property
    def architecture(self) -> str: ...
    @property
    def d_model(self) -> int: ...
    @property
    def file(self) -> GgufFile: ...
    @property
    def isa(self) -> str: ...
    @property
    def n_ctx_train(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_params(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def n_ubatch(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def suppress_tokens(self) -> list[int]: ...
    @property
    def weight_bytes(self) -> int: ...

class MediaEmbedder:
    """Turns images and sound into rows that a model reads."""

    def __init__(self, model: Model, file: GgufFile) -> None: ...
    def embed_audio(
        self, samples: numpy.typing.NDArray[numpy.float32], *, stop: StopToken | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """float32 samples -> float32 [n, d_model], a row for each samples_per_token of them."""

    def embed_image(
        self, pixels: numpy.typing.NDArray[numpy.uint8], *, stop: StopToken | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """uint8 [height, width, 3], sides multiples of patch_size -> float32 [n, d_model], a row per tile."""

    @property
    def d_model(self) -> int: ...
    @property
    def has_audio(self) -> bool: ...
    @property
    def has_image(self) -> bool: ...
    @property
    def image_attention(self) -> bool: ...
    @property
    def n_positions(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def samples_per_token(self) -> int: ...

class Sampler:
    """How the next token is chosen from the logits."""

    def __init__(
        self,
        *,
        temperature: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        top_k: typing.SupportsInt | typing.SupportsIndex = 0,
        top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        repeat_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        presence_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        frequency_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        logit_bias: collections.abc.Mapping[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex
        ] = ...,
        suppress: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = ...,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        n_logprobs: typing.SupportsInt | typing.SupportsIndex = -1,
    ) -> None: ...

class Session:
    """One timeline of tokens that keeps its keys and values."""

    def append(
        self,
        tokens: numpy.typing.NDArray[numpy.int32],
        *,
        media: list[tuple[int, numpy.typing.NDArray[numpy.float32], bool]] = ...,
        stop: StopToken | None = None,
        progress: typing.Any = None,
    ) -> None:
        """Run tokens; all are kept or, on an exception, none. media: (first row, float32 [n, d_model], bidirectional) of each image or sound whose vectors replace the embeddings of n tokens."""

    def append_hidden(
        self,
        tokens: numpy.typing.NDArray[numpy.int32],
        *,
        media: list[tuple[int, numpy.typing.NDArray[numpy.float32], bool]] = ...,
        stop: StopToken | None = None,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """Run tokens and return the hidden states after the last norm, float32 [n, d_model]."""

    def append_importance(
        self,
        tokens: numpy.typing.NDArray[numpy.int32],
        collector: ImportanceCollector,
        *,
        stop: StopToken | None = None,
    ) -> None:
        """Run tokens and add the squares of every matrix's inputs to the collector."""

    def append_logits(
        self,
        tokens: numpy.typing.NDArray[numpy.int32],
        *,
        media: list[tuple[int, numpy.typing.NDArray[numpy.float32], bool]] = ...,
        stop: StopToken | None = None,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """Run tokens and return float32 [n, n_vocab]."""

    def append_score(
        self,
        tokens: numpy.typing.NDArray[numpy.int32],
        targets: numpy.typing.NDArray[numpy.int32],
        *,
        top: typing.SupportsInt | typing.SupportsIndex = 0,
        media: list[tuple[int, numpy.typing.NDArray[numpy.float32], bool]] = ...,
        stop: StopToken | None = None,
    ) -> tuple[typing.Any, ...]:
        """Run tokens; log-probability of targets[i] after tokens[i] (targets < 0: nan) and the top alternatives."""

    def append_taps(
        self,
        tokens: numpy.typing.NDArray[numpy.int32],
        names: collections.abc.Sequence[str],
        *,
        media: list[tuple[int, numpy.typing.NDArray[numpy.float32], bool]] = ...,
    ) -> dict[str, typing.Any]:
        """Run tokens and return named intermediates: embed, attn_in.i, attn_heads.i, attn_out.i, ffn_in.i, ffn_act.i, ffn_out.i, layer_out.i, output_norm, and the others of docs/MODEL.md."""

    def fork(self) -> Session:
        """A second timeline with the same content."""

    def logits(self, *, stop: StopToken | None = None) -> numpy.typing.NDArray[numpy.float32]:
        """float32 [n_vocab] of the last token."""

    def media(self) -> list[typing.Any]:
        """(first row, float32 [n, d_model], bidirectional) of the media on the timeline."""

    def rewind(self, n: typing.SupportsInt | typing.SupportsIndex) -> None:
        """Keep the first n tokens; n must not lie inside an image."""

    def sample(
        self,
        sampler: Sampler,
        n_prompt: typing.SupportsInt | typing.SupportsIndex = 0,
        *,
        mask: numpy.typing.NDArray[numpy.uint32] | None = None,
        stop: StopToken | None = None,
    ) -> tuple[typing.Any, ...]:
        """(token, log-probability, alternatives) drawn from the logits of the last token; does not append. mask: uint32 words, bit t % 32 of word t // 32 allows token t."""

    def save(
        self, fd: typing.SupportsInt | typing.SupportsIndex, front: bytes, *, stop: StopToken | None = None
    ) -> None:
        """Write the session and some bytes of the caller's to an open file."""

    @property
    def kv_bytes(self) -> int: ...
    @property
    def kv_used_bytes(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_ready(self) -> int:
        """How many tokens the next append need not read again."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def snapshot_bytes(self) -> int: ...
    @property
    def snapshot_limit(self) -> int: ...
    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]: ...

class ImportanceCollector:
    """Sums of squares of the inputs of every matrix, over the appended tokens."""

    def __init__(self, model: Model, *, head: bool = False) -> None: ...
    def entries(self) -> list[typing.Any]:
        """(tensor, float64 [n_matrices, n_cols] sums of squares, int64 [n_matrices] rows) of each matrix."""

class Drafter:
    """Guesses the tokens that a model will choose."""

    def __init__(
        self, model: Model, file: GgufFile, *, draft_vocab: typing.SupportsInt | typing.SupportsIndex = 0
    ) -> None: ...
    def step(
        self,
        session: Session,
        token: typing.SupportsInt | typing.SupportsIndex,
        hidden: numpy.typing.NDArray[numpy.float32],
        pos: typing.SupportsInt | typing.SupportsIndex,
        *,
        stop: StopToken | None = None,
    ) -> tuple[typing.Any, ...]:
        """(logits, next hidden) of what follows `token`. hidden: float32 [d_model] of the token before it, the model's or that of the step before; pos: of the first token of the round."""

    @property
    def weight_bytes(self) -> int: ...

class DraftTable:
    """What a model's requests have learnt about drafting: times of passes, chances."""

    def __init__(
        self, passes: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = ...
    ) -> None:
        """passes: V(1), V(2), ... as they are on this machine, for passes that were never run."""

    def pass_times(self) -> dict[int, float]:
        """Seconds of a pass by its rows, of those that were run."""

    @property
    def n_passes(self) -> int: ...
    @property
    def numbers(self) -> list[float]: ...
    @numbers.setter
    def numbers(
        self, arg1: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
    ) -> None: ...

class Drafting:
    """The drafts of one request."""

    def __init__(
        self,
        table: DraftTable,
        sampler: Sampler,
        *,
        n_prompt: typing.SupportsInt | typing.SupportsIndex = 0,
        ends: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = ...,
        drafter: Drafter | None = None,
        lookup: bool = True,
        length: typing.SupportsInt | typing.SupportsIndex = 0,
        script: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = ...,
        accept: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """length: how many tokens to draft; 0: as many as pay. script, for measuring: the tokens by position, of which each is drafted rightly with the chance `accept`."""

    def append(
        self,
        session: Session,
        token: typing.SupportsInt | typing.SupportsIndex,
        *,
        most: typing.SupportsInt | typing.SupportsIndex,
        expected: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = ...,
        mask: numpy.typing.NDArray[numpy.uint32] | None = None,
        stop: StopToken | None = None,
    ) -> None:
        """Run one token in a session, and in the same pass up to `most` that are expected behind it. expected: what comes next in all likelihood, if that is known. mask: which tokens may come next, as `sample` takes it."""

    @property
    def by_place(self) -> list[tuple[int, int]]:
        """(times the draft at that place of a round was reached, times it was right)."""

    @property
    def has_drafter(self) -> bool: ...
    @property
    def n_accepted(self) -> int: ...
    @property
    def n_drafted(self) -> int: ...

class Encoder:
    """Encodes rows of numbers into a tensor type on its own threads."""

    def __init__(self, n_threads: typing.SupportsInt | typing.SupportsIndex = 0, isa: str = "") -> None: ...
    def encode(
        self,
        src: numpy.typing.NDArray[numpy.uint8],
        src_type: str,
        n_cols: typing.SupportsInt | typing.SupportsIndex,
        dst_type: str,
        out: numpy.typing.NDArray[numpy.uint8],
        *,
        importance: numpy.typing.NDArray[numpy.float32] | None = None,
        stop: StopToken | None = None,
    ) -> tuple[typing.Any, ...]:
        """(error2, norm2, weighted_error2, weighted_norm2, first_bad) of the rows, which go to `out`."""

    def lattice_q4_0(
        self,
        src: numpy.typing.NDArray[numpy.uint8],
        src_type: str,
        n_cols: typing.SupportsInt | typing.SupportsIndex,
    ) -> float:
        """The share of the blocks of 32 that Q4_0 stores without loss, as training for Q4_0 leaves them."""

    @property
    def isa(self) -> str: ...
    @property
    def n_threads(self) -> int: ...

class Xxh64:
    """The 64-bit checksum of a tensor, fed in pieces."""

    def __init__(self) -> None: ...
    def digest(self) -> int:
        """The checksum of everything so far."""

    def update(self, data: typing_extensions.Buffer) -> None: ...

def append_together(
    sessions: collections.abc.Sequence[Session],
    pieces: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.int32]],
) -> None:
    """Append one piece of tokens to each of several sessions of a model in one shared step."""

def available_memory() -> int:
    """Bytes this process may still take; 0: unknown."""

def block_size(type: str) -> tuple[int, int]:
    """(elements, bytes) of a block of a tensor type."""

def build_info() -> dict[str, typing.Any]:
    """Version, build type and compiler of the extension."""

def check_drafter(file: GgufFile, target: GgufFile) -> None:
    """Refuses a file that is no drafter of the target, by their headers."""

def cpu_info() -> dict[str, typing.Any]:
    """Instruction-set levels of this build and what this machine can run."""

def dequantize(data: numpy.typing.NDArray[numpy.uint8], type: str) -> numpy.typing.NDArray[numpy.float32]:
    """uint8 blocks of a tensor type -> float32, one dimension."""

def image_memory(
    file: GgufFile,
    n_rows: typing.SupportsInt | typing.SupportsIndex,
    *,
    n_ctx: typing.SupportsInt | typing.SupportsIndex,
    kv_type: str = "f16",
    n_ubatch: typing.SupportsInt | typing.SupportsIndex = 256,
) -> int:
    """Bytes that an image of n_rows tokens needs beside steps of text."""

def measure_roofline(
    n_threads: typing.SupportsInt | typing.SupportsIndex = 0,
    path: str = "",
    n_bytes: typing.SupportsInt | typing.SupportsIndex = 268435456,
) -> list[typing.Any]:
    """What this machine can do: clock, read bandwidth, arithmetic peaks, the cost of a barrier, V(T)."""

def memory_plan(
    file: GgufFile,
    *,
    n_ctx: typing.SupportsInt | typing.SupportsIndex,
    kv_type: str = "f16",
    n_ubatch: typing.SupportsInt | typing.SupportsIndex = 256,
    mmproj: GgufFile | None = None,
    drafter: GgufFile | None = None,
    snapshot_limit: typing.SupportsInt | typing.SupportsIndex = 0,
    packing: bool = True,
) -> dict[str, typing.Any]:
    """Bytes a model needs, from its header alone."""

def pack_rows(
    dtype: str,
    rows: typing.SupportsInt | typing.SupportsIndex,
    cols: typing.SupportsInt | typing.SupportsIndex,
    data: numpy.typing.NDArray[numpy.uint8],
) -> numpy.typing.NDArray[numpy.uint8]:
    """The GGUF rows of a matrix in the packed layout r8p64, as many bytes."""

def quantize(array: numpy.typing.NDArray[numpy.float32], type: str) -> numpy.typing.NDArray[numpy.uint8]:
    """float32 numbers -> uint8 blocks of a tensor type, one dimension."""

def unpack_rows(
    dtype: str,
    rows: typing.SupportsInt | typing.SupportsIndex,
    cols: typing.SupportsInt | typing.SupportsIndex,
    data: numpy.typing.NDArray[numpy.uint8],
) -> numpy.typing.NDArray[numpy.uint8]:
    """The packed bytes of a matrix as GGUF rows."""
