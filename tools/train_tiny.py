"""Train the small model of the package: Gemma 4 unified in miniature, with its drafter.

About 5 M parameters learn, from fresh random dialogues of tiny_world.py, to name drawn figures, count
beeps, follow the chat template, think, call tools and continue text. The drafter (assistant) then learns to
guess the next tokens from the frozen model's hidden states and keys. Written is a Hugging Face folder in
BF16 with the drafter in assistant/. Needs torch and transformers >= 5.17; two CPU cores are enough.

Usage: python tools/train_tiny.py FOLDER    or    python tools/train_tiny.py --evaluate FOLDER
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tiny_world
from tiny_world import Dialogue

MARKERS = "<pad> <eos> <bos> <unk> <mask> <|turn> <turn|> <|think|> <|tool> <tool|> <|tool_call> <tool_call|>"
MARKERS += ' <|tool_response> <tool_response|> <|"|> <|channel> <channel|> <|image> <image|> <|image|>'
MARKERS += " <|audio> <audio|> <|audio|> <|video|>"
SPECIAL = MARKERS.split()
ID = {text: i for i, text in enumerate(SPECIAL)}
SPACE = "\u2581"
N_VOCAB = 1024
WIDTH, D_FF, N_HEADS, HEAD_DIM, N_KV = 256, 512, 4, 64, 2
PATTERN = "SSSGG"
WINDOW = 96
D_PATCH = 128  # width of the patch embedder
SIDE = 48  # pixels of a patch
CELL = 4  # pixels that training looks at as one
FRAME = 640  # samples of a frame
BUDGET = 70  # patches of a picture
N_CTX = 8192
N_DRAFTS = 3
N_PROCESSES = 2
# (weights of red, green and blue, number of patterns): the first two see no grey
COLOUR_MIXES = ((1, -1, 0), 52), ((0.5, 0.5, -1), 52), ((1, 1, 1), 24)
NO_HINT = (-1, -1)
N_HINTS = 12, 8  # colours and counts so far (zero to five); shapes and pitches
HINT_SHARE = 0.3
HINT_LAYER = 2  # the last layer in which a picture's patches see each other
SHARES = {
    "image": 24,
    "audio": 14,
    "both": 14,
    "two": 6,
    "report": 6,
    "tool": 20,
    "chat": 6,
    "repeat": 8,
    "text": 2,
}
FIRST_SHARES = {"image": 60, "audio": 30, "chat": 7, "text": 3}
LAST_SHARES = {
    "image": 16,
    "audio": 20,
    "both": 22,
    "two": 6,
    "report": 8,
    "tool": 14,
    "chat": 4,
    "repeat": 8,
    "text": 2,
}


@dataclass(frozen=True)
class Round:
    """A stretch of training with a learning rate that rises and falls."""

    n_steps: int
    peak: float
    shares: dict[str, int]


ROUNDS = Round(2600, 1e-3, SHARES), Round(1900, 7e-4, SHARES), Round(1100, 5e-4, LAST_SHARES)


# -- vocabulary ---


def make_tokenizer() -> tokenizers.Tokenizer:
    """BPE over the words of many dialogues, in the form of Gemma 4: bytes for what is unknown, no words."""
    rng = np.random.default_rng(1)
    drawers = [getattr(tiny_world.world, name) for name in ("draw_figure", "beep_track")]
    tiny_world.world.draw_figure = lambda *_, **__: None  # words alone
    tiny_world.world.beep_track = lambda *_, **__: (None, None)
    texts = []
    for kind, share in SHARES.items():
        for _ in range(60 * share):
            for piece in tiny_world.render_pieces(tiny_world.make_dialogue(kind, rng)):
                texts.append(piece.text)
    tiny_world.world.draw_figure, tiny_world.world.beep_track = drawers
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    # A merge never joins words, digits, marks or lines, so that BPE over a whole text gives the same.
    learner.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex(rf"{SPACE}?[A-Za-z]+|[^A-Za-z]"), "isolated"
    )
    learner.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    letters = ["\n", SPACE, *(chr(c) for c in range(33, 127))]
    n_merges = N_VOCAB - len(SPECIAL) - 256
    trainer = trainers.BpeTrainer(vocab_size=n_merges, initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    words = sorted(learned["vocab"], key=learned["vocab"].get)
    tokens = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *(w for w in words if w not in ID)]
    tokens += [f"<unused{i}>" for i in range(N_VOCAB - len(tokens))]
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)},
        # None may build a special token of its characters: a user could then type one.
        [tuple(merge) for merge in learned["merges"] if "".join(merge) not in SPECIAL],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    out = tokenizers.Tokenizer(model)
    out.normalizer = normalizers.Replace(" ", SPACE)
    out.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    out.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    out.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", ID["<bos>"])]
    )
    out.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return out


# -- media ---


def target_size(width: int, height: int, budget: int = BUDGET) -> tuple[int, int]:
    """(width, height) after Gemma 4's resize rule: multiples of 48, at most `budget` patches."""
    factor = math.sqrt(budget * SIDE * SIDE / (width * height))
    w, h = (math.floor(factor * side / SIDE) * SIDE for side in (width, height))
    if h == 0:
        h, w = SIDE, min(width // height, budget) * SIDE
    elif w == 0:
        w, h = SIDE, min(height // width, budget) * SIDE
    return w, h


def patches(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """([n, 6912] bytes in (row, column, colour) order, [n, 2] places (x, y)) of a picture."""
    w, h = target_size(*image.size)
    pixels = np.asarray(image.convert("RGB").resize((w, h), Image.Resampling.BICUBIC))
    rows, columns = h // SIDE, w // SIDE
    tiles = pixels.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 1, 3, 4)
    y, x = np.divmod(np.arange(rows * columns), columns)
    return tiles.reshape(rows * columns, -1), np.stack([x, y], axis=1)


def cells(tiles: np.ndarray) -> np.ndarray:
    """[n, 432]: patches normalized as by their first norm, then averaged over squares of 4 x 4 pixels.

    Training uses no finer detail, which spares it most of the work on pictures; the patch layer that is
    written repeats each weight over its square, so it gives the same numbers from the pixels themselves.
    """
    pixels = tiles.astype(np.float32) / 255
    mean, var = pixels.mean(1, keepdims=True), pixels.var(1, keepdims=True)
    n_cells = SIDE // CELL
    squares = pixels.reshape(-1, n_cells, CELL, n_cells, CELL, 3).mean((2, 4))
    return ((squares.reshape(len(tiles), -1) - mean) / np.sqrt(var + 1e-5)).astype(np.float32)


def frames(sound: np.ndarray) -> np.ndarray:
    """[n, 640] samples, zeros at the end."""
    return np.pad(sound, (0, -len(sound) % FRAME)).reshape(-1, FRAME)


# -- examples ---


@dataclass
class Example:
    """One dialogue as numbers."""

    ids: list[int]
    own: list[bool]  # [n]: the model says this token itself
    hints: list[tuple[int, int]]  # [n]: what a token of a medium shows, -1 elsewhere
    tiles: list[np.ndarray]
    cells: list[np.ndarray]
    places: list[np.ndarray]
    waves: list[np.ndarray]


class Encoder:
    """Dialogues to examples."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, full: bool = True) -> None:
        self.tokenizer, self.full = tokenizer, full
        self.kept: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        if text not in self.kept:
            if len(self.kept) > 20000:
                self.kept.clear()
            self.kept[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.kept[text]

    def __call__(self, dialogue: Dialogue, *, prefill: bool = True) -> Example:
        out = Example([], [], [], [], [], [], [])
        media = iter(dialogue.media)
        for piece in tiny_world.render_pieces(dialogue, prefill=prefill):
            for token in self.tokens(piece.text):
                ids, hints = [token], [NO_HINT]
                if token == ID["<|image|>"]:
                    part = next(media)
                    tiles, places = patches(part["image"])
                    if self.full:
                        out.tiles.append(tiles)
                    out.cells.append(cells(tiles))
                    out.places.append(places)
                    ids = [ID["<|image>"], *[token] * len(tiles), ID["<image|>"]]
                    hints = [NO_HINT, *[part["facts"]] * len(tiles), part["facts"]]
                elif token == ID["<|audio|>"]:
                    part = next(media)
                    waves = frames(part["audio"])
                    out.waves.append(waves)
                    ids = [ID["<|audio>"], *[token] * len(waves), ID["<audio|>"]]
                    starts, pitch = part["facts"]
                    ends = np.arange(1, len(waves) + 2) * FRAME / 16000 - 0.01
                    begun = (starts[None] < ends[:, None]).sum(1).tolist()
                    hints = [NO_HINT, *((6 + n, 6 + pitch if n else -1) for n in begun)]
                out.ids += ids
                out.hints += hints
                out.own += [piece.own] * len(ids)
        return out


@dataclass
class Batch:
    ids: torch.Tensor  # [b, t]
    own: torch.Tensor  # [b, t] bool
    hints: torch.Tensor  # [b, t, 2]
    cells: torch.Tensor  # [n_tiles, 432]
    places: torch.Tensor  # [n_tiles, 2]
    waves: torch.Tensor  # [n_frames, 640]


def collate(examples: list[Example]) -> Batch:
    n = max(len(example.ids) for example in examples)
    ids = np.zeros((len(examples), n), np.int64)
    own = np.zeros((len(examples), n), bool)
    hints = np.full((len(examples), n, 2), -1, np.int64)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        own[row, : len(example.ids)] = example.own
        hints[row, : len(example.ids)] = example.hints

    def joined(name: str, width: int, dtype: Any) -> torch.Tensor:
        parts = [part for example in examples for part in getattr(example, name)]
        return torch.from_numpy(np.concatenate([np.zeros((0, width), dtype), *parts]))

    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(own),
        torch.from_numpy(hints),
        joined("cells", 3 * (SIDE // CELL) ** 2, np.float32),
        joined("places", 2, np.int64),
        joined("waves", FRAME, np.float32),
    )


def stream(
    tokenizer: tokenizers.Tokenizer, seed: int, n_tokens: int, all_shares: dict[str, int], n_steps: int = 0
) -> Iterator[Batch]:
    """Endless batches of fresh dialogues, alike in length within a batch.

    In `n_steps` they go from simple pictures and media alone to everything; 0: everything at once.
    """
    rng, encode, n_made = np.random.default_rng([seed, 7]), Encoder(tokenizer, full=False), 0
    while True:
        done = n_made / n_steps if n_steps else 1.0
        spread = min(1.0, max(0.0, (done - 0.1) / 0.3))
        table = FIRST_SHARES if done < 0.12 else all_shares
        kinds, shares = list(table), np.array(list(table.values()), float)
        pool = []
        for kind in rng.choice(kinds, size=96, p=shares / shares.sum()):
            dialogue = tiny_world.make_dialogue(str(kind), rng, spread=spread)
            has_calls = any(message.get("tool_calls") for message in dialogue.messages)
            pool.append(encode(dialogue, prefill=bool(rng.random() < (0.5 if has_calls else 0.9))))
        pool.sort(key=lambda example: len(example.ids))
        batches: list[list[Example]] = [[]]
        for example in pool:
            if batches[-1] and len(example.ids) * (len(batches[-1]) + 1) > n_tokens:
                batches.append([])
            batches[-1].append(example)
        for i in rng.permutation(len(batches)):
            n_made += 1
            yield collate(batches[i])


# -- model ---


def text_config(pattern: str, **changes: Any) -> dict[str, Any]:
    kinds = ["sliding_attention" if kind == "S" else "full_attention" for kind in pattern]
    return {
        "model_type": "gemma4_unified_text",
        "vocab_size": N_VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": D_FF,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_KV,
        "head_dim": HEAD_DIM,
        "sliding_window": WINDOW,
        "layer_types": kinds,
        "max_position_embeddings": N_CTX,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
        "per_layer_config": {
            str(i): {"head_dim": 2 * HEAD_DIM, "num_key_value_heads": 1}
            for i, kind in enumerate(kinds)
            if kind == "full_attention"
        },
        "bos_token_id": ID["<bos>"],
        "eos_token_id": ID["<eos>"],
        "pad_token_id": ID["<pad>"],
        "tie_word_embeddings": True,
        **changes,
    }


def model_config() -> dict[str, Any]:
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "dtype": "bfloat16",
        "text_config": text_config(PATTERN),
        "vision_config": {
            "model_type": "gemma4_unified_vision",
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "mm_embed_dim": D_PATCH,
            "mm_posemb_size": 1120,
            "output_proj_dims": D_PATCH,
        },
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": FRAME},
        "image_token_id": ID["<|image|>"],
        "boi_token_id": ID["<|image>"],
        "eoi_token_id": ID["<image|>"],
        "audio_token_id": ID["<|audio|>"],
        "boa_token_id": ID["<|audio>"],
        "eoa_token_index": ID["<audio|>"],
        "video_token_id": ID["<|video|>"],
        "eos_token_id": [ID["<eos>"], ID["<turn|>"]],
        "tie_word_embeddings": True,
        "transformers_version": "5.17.0",
    }


def build(raw: dict[str, Any]) -> Any:
    """The transformers model of a config, in float32."""
    import transformers

    cls = getattr(transformers, raw["architectures"][0])
    config = cls.config_class.from_dict(raw)
    config._attn_implementation = "sdpa"
    return cls(config).to(torch.float32)


def add_coarse(model: Any) -> None:
    """The patch layer of training, [width, cells], in place of patch_dense.weight."""
    n = SIDE // CELL
    coarse = torch.nn.Parameter(torch.zeros(D_PATCH, 3 * n * n))
    model.model.embed_vision.register_parameter("coarse", coarse)
    with torch.no_grad():
        fine = model.model.embed_vision.patch_dense.weight.view(D_PATCH, n, CELL, n, CELL, 3)
        coarse.copy_(fine.float().sum((2, 4)).reshape(D_PATCH, -1))


@torch.no_grad()
def without_coarse(model: Any) -> Any:
    """A copy whose patch layer works on pixels."""
    plain = build(model_config())
    plain.load_state_dict(model.state_dict(), strict=False)
    n = SIDE // CELL
    fine = (model.model.embed_vision.coarse / CELL**2).view(D_PATCH, n, 1, n, 1, 3)
    fine = fine.expand(-1, -1, CELL, -1, CELL, -1).reshape(D_PATCH, -1)
    plain.model.embed_vision.patch_dense.weight.copy_(fine)
    return plain.eval()


@torch.no_grad()
def start_values(model: Any) -> None:
    """Random numbers for which the first steps go well.

    Attention has no scale of its own, so the query and key norms start at head_dim^(-1/4) each. The patch
    layer starts as cosine patterns, lowest first, the frame layer as cosines and sines 25 Hz apart.
    """
    for name, p in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            p.fill_(p.numel() ** -0.25)
        elif name.endswith("embed_tokens.weight"):
            p.normal_(0, p.shape[1] ** -0.5)
        elif "pos_embedding" in name:
            p.normal_(0, 0.2)
        elif p.ndim == 2:
            p.normal_(0, p.shape[1] ** -0.5)
    for name, module in model.named_modules():
        if name.endswith("embed_vision"):
            n = SIDE // CELL
            waves = np.cos(math.pi * (np.arange(n) + 0.5)[:, None] * np.arange(n) / n)  # [cell, order]
            orders = sorted(((u, v) for u in range(n) for v in range(n)), key=lambda o: o[0] ** 2 + o[1] ** 2)
            rows = [(order, mix) for mix, count in COLOUR_MIXES for order in orders[:count]]
            for i, ((u, v), mix) in enumerate(rows):
                pattern = np.outer(waves[:, u], waves[:, v])[:, :, None] * np.array(mix)
                pattern /= np.linalg.norm(pattern)
                module.coarse[i] = torch.from_numpy(pattern.reshape(-1))
            module.patch_dense.bias.normal_(0, 0.5)  # so that a plain patch is not all noise
        elif name.endswith("embed_audio"):
            t = np.arange(FRAME) / 16000
            for i in range(WIDTH // 2):
                angle = 2 * math.pi * (150 + 25 * i) * t
                for k, wave in enumerate((np.cos(angle), np.sin(angle))):
                    module.embedding_projection.weight[2 * i + k] = torch.from_numpy(0.01 * wave)


def masks(ids: torch.Tensor) -> torch.Tensor:
    """[b, 1, t, t] of sliding layers: the last WINDOW tokens, and all of one's own picture ahead."""
    seen = ids == ID["<|image|>"]
    starts = seen & ~F.pad(seen, (1, 0))[:, :-1]
    block = torch.where(seen, starts.cumsum(1), 0)
    same = (block[:, :, None] == block[:, None, :]) & seen[:, :, None]
    q, k = torch.arange(ids.shape[1])[:, None], torch.arange(ids.shape[1])[None]
    return (((k <= q) | same) & (k > q - WINDOW))[:, None]


def embed(model: Any, batch: Batch) -> torch.Tensor:
    """[b, t, width]: what enters the first layer."""
    inner = model.model
    medium = (batch.ids == ID["<|image|>"]) | (batch.ids == ID["<|audio|>"])
    x = inner.language_model.embed_tokens(batch.ids.masked_fill(medium, 0))
    if len(batch.cells):
        eyes = inner.embed_vision
        u = eyes.patch_ln2(F.linear(batch.cells, eyes.coarse, eyes.patch_dense.bias))
        u = u + eyes.pos_embedding[batch.places[:, 0], 0] + eyes.pos_embedding[batch.places[:, 1], 1]
        seen = eyes.multimodal_embedder(eyes.pos_norm(u))
        x = x.masked_scatter((batch.ids == ID["<|image|>"])[..., None], seen)
    if len(batch.waves):
        x = x.masked_scatter((batch.ids == ID["<|audio|>"])[..., None], inner.embed_audio(batch.waves))
    return x


def run(model: Any, batch: Batch, **options: Any) -> Any:
    """Output of the text stack."""
    mask = {"sliding_attention": masks(batch.ids), "full_attention": None}
    place = torch.arange(batch.ids.shape[1])[None]
    return model.model.language_model(
        inputs_embeds=embed(model, batch), attention_mask=mask, position_ids=place, use_cache=False, **options
    )


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return 30 * torch.tanh(model.lm_head(hidden) / 30)


class Hints(torch.nn.Module):
    """Two linear readers of what each patch and frame shows, for training alone.

    They teach the lower layers to see and to count long before the answers alone would.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.readers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, n) for n in N_HINTS)
        self.states = torch.empty(0)
        model.model.language_model.layers[HINT_LAYER].register_forward_hook(self.keep)

    def keep(self, layer: Any, given: Any, states: torch.Tensor) -> None:
        self.states = states

    def forward(self, batch: Batch) -> torch.Tensor:
        states = F.rms_norm(self.states, (WIDTH,))
        losses = []
        for i, reader in enumerate(self.readers):
            hinted = batch.hints[..., i] >= 0
            if hinted.any():
                losses.append(F.cross_entropy(reader(states[hinted]), batch.hints[..., i][hinted]))
        return torch.stack(losses).sum() if losses else torch.zeros(())


def own_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, float]:
    """(mean loss, share of right tokens) of what the model says itself."""
    hidden = run(model, batch).last_hidden_state[:, :-1]
    own = batch.own[:, 1:]
    logits, wanted = logits_of(model, hidden[own]), batch.ids[:, 1:][own]
    return F.cross_entropy(logits, wanted), float((logits.argmax(-1) == wanted).float().mean())


class FastNorm(torch.autograd.Function):
    """x * rsqrt(mean(x^2) + eps) * w over the last axis, in few passes over memory; w may be None."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor | None, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (length.square() / x.shape[-1] + eps).rsqrt()
        normed = x * scale
        ctx.save_for_backward(normed, scale, w)
        return normed if w is None else normed * w

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        (grad,) = grads
        normed, scale, w = ctx.saved_tensors
        grad_w = None
        product = grad * normed
        if w is not None:
            grad_w = product.reshape(-1, w.shape[0]).sum(0)
            grad = grad * w
            along = (product @ w / w.shape[0])[..., None]
        else:
            along = product.mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, along, value=-1).mul_(scale), grad_w, None


def faster_norms() -> None:
    """Let transformers' norm use FastNorm."""
    from transformers.models.gemma4_unified import modeling_gemma4_unified as modeling

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = FastNorm.apply(x, self.weight if self.with_scale else None, self.eps)
        return normed

    modeling.Gemma4UnifiedRMSNorm.forward = forward


# -- training ---


def rate(done: float, peak: float) -> float:
    """Learning rate after a share of the time: short warm-up, then a cosine to a fiftieth."""
    if done < 0.02:
        return peak * (0.02 + done / 0.02)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def groups(model: Any) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    vectors = [p for p in model.parameters() if p.ndim == 1 and p.requires_grad]
    return [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}]


@torch.no_grad()
def check(model: Any, encode: Encoder, n: int = 20, seed: int = 5) -> str:
    """Share of held-back dialogues per kind in which the model would say every token right."""
    parts = []
    for kind in SHARES:
        rng = np.random.default_rng([seed, 3])
        right = 0
        examples = [encode(tiny_world.make_dialogue(kind, rng)) for _ in range(n)]
        for first in range(0, n, 8):
            batch = collate(examples[first : first + 8])
            logits = logits_of(model, run(model, batch).last_hidden_state[:, :-1])
            wrong = (logits.argmax(-1) != batch.ids[:, 1:]) & batch.own[:, 1:]
            right += int((~wrong.any(1)).sum())
        parts.append(f"{kind} {100 * right / n:.0f}")
    return " ".join(parts)


def together(work: Any, folder: Path, *given: Any) -> None:
    """Run work(rank, folder, place to meet, ...) in all processes."""
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(work, (folder, f"file://{meeting}/meeting", *given), nprocs=N_PROCESSES)


def join(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    transformers_quiet()
    faster_norms()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=N_PROCESSES)


def leave() -> None:
    dist.barrier()
    dist.destroy_process_group()


def train(rank: int, folder: Path, meeting: str, turn: int, round_: Round, n_tokens: int) -> None:
    """One of two processes that train the same model on dialogues of their own; the first one saves it.

    Two processes with a thread each wait for each other once a step, two threads at every operation.
    The first round starts from random numbers and simple pictures, a later one from what `folder` holds.
    """
    n_steps = round_.n_steps
    join(rank, meeting)
    torch.manual_seed(turn)
    if turn == 0:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = build(model_config())
        add_coarse(model)
        start_values(model)
    else:
        model, tokenizer = load(folder)
    model.model.embed_vision.patch_ln1.requires_grad_(False)
    model.model.embed_vision.patch_dense.weight.requires_grad_(False)
    model.train()
    hints = Hints(model)
    parameters = [p for p in (*model.parameters(), *hints.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(groups(model), lr=round_.peak, betas=(0.9, 0.98), eps=1e-9, fused=True)
    optimizer.add_param_group({"params": list(hints.parameters()), "weight_decay": 0.0})
    first = rank == 0
    if first:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    start, seen, right, total, hinted = time.monotonic(), 0, 0.0, 0.0, 0.0
    seed = 1 + rank + 10 * turn
    batches = stream(tokenizer, seed, n_tokens // N_PROCESSES, round_.shares, 0 if turn else n_steps)
    for step, batch in zip(range(1, n_steps + 1), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / n_steps, round_.peak)
        loss, share = own_loss(model, batch)
        hint = hints(batch)
        optimizer.zero_grad(set_to_none=False)
        (loss + HINT_SHARE * hint).backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seen, hinted = seen + N_PROCESSES * batch.ids.numel(), hinted + hint.item()
        total, right = total + loss.item(), right + share
        if first and step % 100 == 0:
            took = time.monotonic() - start
            print(
                f"{took:6.0f} s  step {step}  loss {total / 100:.3f}  right {right / 100:.3f}  "
                f"hints {hinted / 100:.3f}  {seen / took:.0f} tokens/s",
                flush=True,
            )
            total = right = hinted = 0.0
        if first and (step % 300 == 0 or step == n_steps):
            print(f"% right: {check(model, Encoder(tokenizer, full=False))}", flush=True)
            save_weights(without_coarse(model), folder, model_config())
    leave()


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    flat /= N_PROCESSES
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p).clone()


# -- evaluation ---


@torch.no_grad()
def answer(model: Any, encode: Encoder, dialogue: Dialogue, limit: int = 80) -> str:
    """What the model says next, by transformers' own generation, greedily."""
    example = encode(dialogue)
    ids = torch.tensor([example.ids])
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == ID["<|image|>"]).long() + 3 * (ids == ID["<|audio|>"]).long(),
    }
    if example.tiles:
        n = max(len(tiles) for tiles in example.tiles)
        pad = [n - len(tiles) for tiles in example.tiles]
        tiles = [np.pad(t, ((0, p), (0, 0))) for t, p in zip(example.tiles, pad, strict=True)]
        places = [
            np.pad(t, ((0, p), (0, 0)), constant_values=-1) for t, p in zip(example.places, pad, strict=True)
        ]
        inputs["pixel_values"] = torch.from_numpy(np.stack(tiles)).to(model.dtype) / 255
        inputs["image_position_ids"] = torch.from_numpy(np.stack(places))
    if example.waves:
        n = max(len(wave) for wave in example.waves)
        waves = [np.pad(wave, ((0, n - len(wave)), (0, 0))) for wave in example.waves]
        inputs["input_features"] = torch.from_numpy(np.stack(waves)).to(model.dtype)
        inputs["input_features_mask"] = torch.tensor([[i < len(w) for i in range(n)] for w in example.waves])
    ends = [ID["<eos>"], ID["<turn|>"], ID["<|tool_response>"]]
    out = model.generate(
        **inputs, max_new_tokens=limit, do_sample=False, eos_token_id=ends, pad_token_id=0,
        suppress_tokens=[ID["<audio|>"], ID["<image|>"]],
    )  # fmt: skip
    return encode.tokenizer.decode(out[0, ids.shape[1] :].tolist(), skip_special_tokens=False)


def wanted(dialogue: Dialogue) -> Iterator[tuple[Dialogue, str]]:
    """(prompt, right answer) of each thing the model says after the last question."""
    messages = dialogue.messages
    last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
    for i in range(last_user + 1, len(messages)):
        if messages[i]["role"] == "assistant":
            prompt = Dialogue(dialogue.kind, messages[:i], dialogue.tools, dialogue.think)
            whole = Dialogue(dialogue.kind, messages[: i + 1], dialogue.tools, dialogue.think)
            prefill = i == last_user + 1
            before = "".join(piece.text for piece in tiny_world.render_pieces(prompt, prefill=prefill))
            after = "".join(piece.text for piece in tiny_world.render_pieces(whole, prefill=prefill))
            yield prompt, after[len(before) :].removesuffix("\n")


def evaluate(model: Any, tokenizer: tokenizers.Tokenizer, n: int, seed: int = 99) -> dict[str, float]:
    """Share of exactly right answers per kind, on dialogues of another seed."""
    encode = Encoder(tokenizer)
    shares: dict[str, float] = {}
    for kind in tiny_world.KINDS:
        if kind == "text":
            continue
        rng = np.random.default_rng([seed, 11])
        right = total = 0
        shown = 0
        for _ in range(n):
            for prompt, text in wanted(tiny_world.make_dialogue(kind, rng)):
                said = answer(model, encode, prompt)
                right, total = right + (said == text), total + 1
                if said != text and shown < 3:
                    shown += 1
                    print(f"  {kind}: {said!r} instead of {text!r}", flush=True)
        shares[kind] = right / total
        print(f"{kind}: {right} of {total} right ({100 * right / total:.1f} %)", flush=True)
    return shares


# -- drafter ---


def assistant_config() -> dict[str, Any]:
    pattern = "SG"
    changes = {"final_logit_softcapping": None, "use_bidirectional_attention": None}
    return {
        "architectures": ["Gemma4UnifiedAssistantForCausalLM"],
        "model_type": "gemma4_unified_assistant",
        "dtype": "bfloat16",
        "text_config": text_config(pattern, num_kv_shared_layers=len(pattern), **changes),
        "backbone_hidden_size": WIDTH,
        "use_ordered_embeddings": False,
        "num_centroids": 32,
        "centroid_intermediate_top_k": 4,
        "tie_word_embeddings": True,
        "transformers_version": "5.17.0",
    }


@dataclass
class Drafts:
    """What the drafter says after every own token n of a batch: token n + 1, n + 2, ..."""

    logits: list[torch.Tensor]  # per step [b, q, vocabulary]
    teacher: list[torch.Tensor]  # the model's own logits, alike
    wanted: list[torch.Tensor]  # [b, q] the token that follows
    valid: list[torch.Tensor]  # [b, q] bool: is there such a token of the model's own
    places: torch.Tensor  # [b, q] n


def draft(assistant: Any, model: Any, batch: Batch, n_steps: int = N_DRAFTS) -> Drafts:
    """Teacher-forced rounds from every place at once; the keys before a place are all a round sees."""
    with torch.no_grad():
        out = run(model, batch, return_shared_kv_states=True)
        hidden, keys = out.last_hidden_state, out.shared_kv_states
    b, t = batch.ids.shape
    start = batch.own & F.pad(batch.own[:, 1:], (0, 1))
    n_queries = max(1, int(start.sum(1).max()))
    places = torch.ones(b, n_queries, dtype=torch.long)
    valid = torch.zeros(b, n_queries, dtype=torch.bool)
    for row in range(b):
        found = start[row].nonzero()[:, 0]
        places[row, : len(found)] = found
        valid[row, : len(found)] = True
    rows = torch.arange(b)[:, None]
    ahead = torch.arange(t)[None, None] - places[..., None]  # [b, q, t]
    mask = {
        "full_attention": (ahead < 0)[:, None],
        "sliding_attention": ((ahead < 0) & (ahead > -WINDOW))[:, None],
    }
    result = Drafts([], [], [], [], places)
    token, h = batch.ids[rows, places], hidden[rows, places - 1]
    for i in range(1, n_steps + 1):
        e = model.model.language_model.embed_tokens(token)
        state = assistant.model(
            inputs_embeds=assistant.pre_projection(torch.cat([e, h], -1)),
            attention_mask=mask,
            position_ids=places,
            shared_kv_states=keys,
            use_cache=False,
        ).last_hidden_state
        following = (places + i).clamp(max=t - 1)
        valid = valid & (places + i < t) & batch.own[rows, following]
        token, h = batch.ids[rows, following], assistant.post_projection(state)
        result.logits.append(assistant.lm_head(state))
        with torch.no_grad():
            result.teacher.append(logits_of(model, hidden[rows, following - 1]))
        result.wanted.append(token)
        result.valid.append(valid)
    return result


def train_assistant(rank: int, folder: Path, meeting: str, n_steps: int, peak: float, n_tokens: int) -> None:
    """One of two processes that teach a drafter to say what the frozen model would; the first saves it."""
    join(rank, meeting)
    model, tokenizer = load(folder)  # as rounded to BF16
    model.requires_grad_(False)
    torch.manual_seed(1)
    assistant = build(assistant_config())
    start_values(assistant)
    with torch.no_grad():
        assistant.lm_head.weight.copy_(model.lm_head.weight)
    first = rank == 0
    if first:
        print(f"drafter: {sum(p.numel() for p in assistant.parameters()):,} parameters", flush=True)
    parameters = list(assistant.parameters())
    optimizer = torch.optim.AdamW(groups(assistant), lr=peak, betas=(0.9, 0.98), eps=1e-9, fused=True)
    start, total = time.monotonic(), 0.0
    batches = stream(tokenizer, 77 + rank, n_tokens // N_PROCESSES, SHARES)
    for step, batch in zip(range(1, n_steps + 1), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / n_steps, peak)
        drafts = draft(assistant, model, batch)
        losses = [
            F.cross_entropy(logits[valid], teacher[valid].softmax(-1))
            for logits, teacher, valid in zip(drafts.logits, drafts.teacher, drafts.valid, strict=True)
            if valid.any()
        ]
        optimizer.zero_grad(set_to_none=False)
        if losses:
            loss = torch.stack(losses).sum()
            loss.backward()
            total += loss.item()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if first and step % 100 == 0:
            print(
                f"{time.monotonic() - start:6.0f} s  drafter step {step}  loss {total / 100:.3f}", flush=True
            )
            total = 0.0
    if first:
        save_weights(assistant, folder / "assistant", assistant_config())
    leave()


@torch.no_grad()
def acceptance(assistant: Any, model: Any, tokenizer: tokenizers.Tokenizer, n: int, seed: int = 98) -> str:
    """How many drafts of rounds of 1, 2, 3 the model would say itself, greedily, on held-back dialogues."""
    encode, rng = Encoder(tokenizer), np.random.default_rng([seed, 13])
    drafted, accepted, rounds = [0] * N_DRAFTS, [0] * N_DRAFTS, [0] * N_DRAFTS
    for kind, share in SHARES.items():
        examples = [encode(tiny_world.make_dialogue(kind, rng)) for _ in range(max(1, n * share // 100))]
        for first in range(0, len(examples), 8):
            drafts = draft(assistant, model, collate(examples[first : first + 8]))
            good = [
                logits.argmax(-1) == teacher.argmax(-1)
                for logits, teacher in zip(drafts.logits, drafts.teacher, strict=True)
            ]
            for row in range(len(drafts.places)):
                for k in range(1, N_DRAFTS + 1):
                    next_place = 0
                    for q in range(drafts.places.shape[1]):
                        place = int(drafts.places[row, q])
                        if not drafts.valid[0][row, q] or place < next_place:
                            continue
                        n_right = 0
                        rounds[k - 1] += 1
                        for i in range(k):
                            if not drafts.valid[i][row, q]:
                                break
                            drafted[k - 1] += 1
                            if n_right == i and good[i][row, q]:
                                n_right += 1
                        accepted[k - 1] += n_right
                        next_place = place + n_right + 1
    return ", ".join(
        f"{k} drafts: {100 * accepted[k - 1] / drafted[k - 1]:.0f} % accepted, "
        f"{1 + accepted[k - 1] / rounds[k - 1]:.2f} tokens per round"
        for k in range(1, N_DRAFTS + 1)
    )


# -- files ---


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_weights(model: Any, folder: Path, raw: dict[str, Any]) -> None:
    """Weights in BF16, the config as it was given, and how to generate."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    write_json(folder / "config.json", raw)
    write_json(folder / "generation_config.json", generation_config())


def generation_config() -> dict[str, Any]:
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
        "bos_token_id": ID["<bos>"],
        "pad_token_id": ID["<pad>"],
        "eos_token_id": [ID["<eos>"], ID["<turn|>"], ID["<|tool_response>"]],
        "suppress_tokens": [ID["<audio|>"], ID["<image|>"]],
    }


def write_extras(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """The files beside config and weights. The chat template is the package's own."""
    template = Path(__file__).resolve().parents[1] / "python/gemmule/_chat/gemma4.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    settings = {"tokenizer_class": "GemmaTokenizer", **named, "add_bos_token": True}
    write_json(folder / "tokenizer_config.json", settings | {"extra_special_tokens": SPECIAL[5:]})
    image = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": False,
        "rescale_factor": 1 / 255,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "image_processor_type": "Gemma4UnifiedImageProcessor",
        "resample": 3,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "max_soft_tokens": BUDGET,
    }
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "Gemma4UnifiedProcessor",
            "image_processor": image,
            "video_processor": {
                **image,
                "video_processor_type": "Gemma4UnifiedVideoProcessor",
                "num_frames": 32,
            },
            "feature_extractor": {
                "feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor",
                "feature_size": FRAME,
                "audio_samples_per_token": FRAME,
                "sampling_rate": 16000,
                "padding_value": 0.0,
            },
            "image_seq_length": BUDGET,
            "audio_seq_length": 750,
            "audio_ms_per_token": 40,
        },
    )


def transformers_quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def load(folder: Path) -> tuple[Any, tokenizers.Tokenizer]:
    import transformers

    model = transformers.Gemma4UnifiedForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    add_coarse(model)
    return model.eval(), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_assistant(folder: Path) -> Any:
    import transformers

    cls = transformers.Gemma4UnifiedAssistantForCausalLM
    return cls.from_pretrained(folder / "assistant", dtype=torch.float32).eval()


def report(folder: Path, n: int) -> None:
    """Measure what a folder holds."""
    model, tokenizer = load(folder)
    print(f"% right, teacher-forced: {check(model, Encoder(tokenizer), 2 * n, 97)}", flush=True)
    evaluate(model, tokenizer, n)
    if (folder / "assistant").is_dir():
        print(acceptance(load_assistant(folder), model, tokenizer, 4 * n), flush=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:>10,} {path.relative_to(folder)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evaluate", action="store_true", help="only measure what FOLDER holds")
    parser.add_argument("--assistant", action="store_true", help="only train the drafter of FOLDER's model")
    parser.add_argument("--from-round", type=int, default=0, help="1, 2: go on with FOLDER's model")
    parser.add_argument("--assistant-steps", type=int, default=900, help="training steps of the drafter")
    parser.add_argument("--batch", type=int, default=1536, help="tokens of a step")
    parser.add_argument("-n", type=int, default=100, help="held-back dialogues of each kind")
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers_quiet()
    started = time.monotonic()
    if not args.evaluate and not args.assistant and args.from_round == 0:
        tokenizer = make_tokenizer()
        args.folder.mkdir(parents=True, exist_ok=True)
        write_extras(args.folder, tokenizer)
    for turn, round_ in enumerate(ROUNDS):
        if turn >= args.from_round and not args.evaluate and not args.assistant:
            together(train, args.folder, turn, round_, args.batch)
    if not args.evaluate:
        together(train_assistant, args.folder, args.assistant_steps, 2e-3, args.batch)
        print(f"trained in {time.monotonic() - started:.0f} s", flush=True)
    report(args.folder, args.n)


if __name__ == "__main__":
    main()
