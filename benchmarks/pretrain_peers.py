"""What `pretrain.py` measures feedfwd beside: Hugging Face's Llama, and a character model as nanoGPT trains it."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The size of the issue: 17.3 million parameters.
SMALL = {"vocabulary": 8192, "width": 384, "depth": 8, "heads": 6, "hidden": 1024, "context": 512}
CONTEXT, ROWS, UPDATES = 64, 12, 2000  # of nanoGPT's setting for laptops
BATCH = 8  # rows of Llama's updates on books


def llama(vocabulary: int, width: int, depth: int, heads: int, hidden: int, context: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def llama_update(model: Any, lr: float, *, bf16: bool, compiled: bool) -> Callable[[Tensor, Tensor, float], Tensor]:
    """One update of AdamW, (inputs, targets, multiplier of the rate) -> loss, as a Trainer does it: clipped to 1."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=inputs).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def update(inputs: Tensor, targets: Tensor, factor: float = 1.0) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return update


class Scored:
    """Llama with what feedfwd's evaluation asks of a model."""

    def __init__(self, model: Any) -> None:
        self.model, self.training, self.head_weight = model, True, model.lm_head.weight
        self.train, self.eval = model.train, model.eval

    def hidden(self, ids: Tensor) -> Tensor:
        return self.model.model(input_ids=ids).last_hidden_state


def train_llama(run: Path, minutes: float, seed: int, *, bf16: bool, compiled: bool, lr: float = 1e-3) -> dict:
    """Llama of a run's size on its text and tokens, for so many minutes by the clock; bits per byte as feedfwd's.

    In batches of `BATCH` rows, however many feedfwd takes: AdamW does better by more and smaller updates.
    """
    from feedfwd.checkpoint import Run
    from feedfwd.config import parse
    from feedfwd.config_pretrain import PretrainConfig
    from feedfwd.data.tokenizer import TextTokenizer
    from feedfwd.evaluate.text import text_scores
    from feedfwd.recipes.console import Silent
    from feedfwd.recipes.text import prepare_text
    from feedfwd.train.precision import FP32, Precision

    config = parse(PretrainConfig, Run(run).settings())
    config = config.with_("train.batch_size", BATCH)
    p = prepare_text(config, Silent(), tokenizer=TextTokenizer.load(run / "tokenizer.json"))
    m = p.config.model
    torch.manual_seed(seed)
    model = llama(p.tokenizer.vocabulary, m.width, m.depth, m.heads, p.config.ffn.hidden, p.config.data.row)
    update, batches = llama_update(model, lr, bf16=bf16, compiled=compiled), p.batches()

    def step(factor: float) -> Tensor:
        batch = next(batches)
        return update(batch.inputs, batch.targets, factor)

    begun = time.perf_counter()
    step(1e-6)  # compiles
    compiling, done = time.perf_counter() - begun, 0
    while (spent := time.perf_counter() - begun) < 60 * minutes:  # warm-up and cosine by the time spent
        share = (spent - compiling) / (60 * minutes - compiling)
        step(min((share + 1e-3) / 0.02, 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2))
        done += 1
    seconds = time.perf_counter() - begun
    autocast = Precision("bf16", "", "cpu") if bf16 else FP32
    scores = text_scores(Scored(model), p.held_out, p.config.data.row, p.config.train.batch_size, precision=autocast)
    n = sum(parameter.numel() for parameter in model.parameters())
    rate = p.tokens_per_update * done / (seconds - compiling)
    return scores | {"seconds": seconds, "steps": done, "tokens_per_second": rate, "parameters": n}


def train_nanochat(run: Path, minutes: float, seed: int, checkout: str, *, bf16: bool) -> dict:
    """nanochat's recipe for CPUs (runs/runcpu.sh: six layers of 384, 32 rows of 512) on a run's text and tokens.

    Its own model, optimizer, rates and schedules, out of a checkout, compiled as its script does. Where the script
    counts updates the time spent counts here, so that its decay ends with the minutes.
    """
    import os
    import sys

    os.environ["NANOCHAT_DTYPE"] = "bfloat16" if bf16 else "float32"
    sys.path.insert(0, checkout)
    from nanochat.gpt import GPT, GPTConfig

    from feedfwd.checkpoint import Run
    from feedfwd.config import parse
    from feedfwd.config_pretrain import PretrainConfig
    from feedfwd.data.packing import held_out_batches
    from feedfwd.data.tokenizer import TextTokenizer
    from feedfwd.evaluate.text import bits_per_byte
    from feedfwd.recipes.console import Silent
    from feedfwd.recipes.text import prepare_text

    row, rows, ratio = 512, 32, 12
    config = parse(PretrainConfig, Run(run).settings()).with_("train.batch_size", rows).with_("data.row", row)
    p = prepare_text(config, Silent(), tokenizer=TextTokenizer.load(run / "tokenizer.json"))

    def built(depth: int) -> Any:
        width = 64 * depth
        shape = {"n_layer": depth, "n_head": width // 64, "n_kv_head": width // 64, "n_embd": width}
        return GPT(GPTConfig(sequence_len=row, vocab_size=p.tokenizer.vocabulary, window_pattern="L", **shape))

    def horizon(model: Any) -> float:  # tokens, from which it derives the decay
        counts = model.num_scaling_params()
        return ratio * (counts["transformer_matrices"] + counts["lm_head"])

    torch.manual_seed(seed)
    model = built(6)
    model.init_weights()
    with torch.device("meta"):
        reference = horizon(built(12))
    batch = (row * rows / 2**19) ** 0.5
    rates = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "scalar_lr": 0.5, "matrix_lr": 0.02}
    decay = 0.28 * batch * reference / horizon(model)
    optimizer = model.setup_optimizer(**{name: rate * batch for name, rate in rates.items()}, weight_decay=decay)
    compiled, batches = torch.compile(model, dynamic=False), p.batches()

    def step(n: int, share: float) -> None:
        batch = next(batches)
        compiled(batch.inputs, batch.targets).backward()
        warm, left = min(1.0, (n + 1) / 40), min(1.0, (1 - share) / 0.65)
        momentum = 0.85 + 0.12 * min(1.0, n / 400) if left == 1 else 0.97 * left + 0.90 * (1 - left)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * warm * (left + 0.05 * (1 - left))
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.step()
        model.zero_grad(set_to_none=True)

    begun = time.perf_counter()
    step(0, 0.0)  # compiles
    compiling, done = time.perf_counter() - begun, 1
    while (spent := time.perf_counter() - begun) < 60 * minutes:
        step(done, (spent - compiling) / (60 * minutes - compiling))
        done += 1
    seconds = time.perf_counter() - begun
    nats, seen = 0.0, 0.0
    model.eval()
    with torch.inference_mode():
        for held in held_out_batches(p.held_out, row, 4):
            weights = torch.ones(held.targets.shape) if held.weights is None else held.weights
            losses = model(held.inputs, held.targets, loss_reduction="none").view(held.targets.shape)
            nats, seen = nats + float((losses * weights).sum()), seen + float(weights.sum())
    n_bytes = sum(tokens.counts.bytes for tokens in p.held_out)
    scores = {"loss": nats / seen, "bits_per_byte": bits_per_byte(nats / seen * sum(map(len, p.held_out)), n_bytes)}
    n = sum(parameter.numel() for parameter in model.parameters())
    rate = row * rows * (done - 1) / (seconds - compiling)
    return scores | {"seconds": seconds, "steps": done, "tokens_per_second": rate, "parameters": n}


# --- the character model --------------------------------------------------------------------------------------------


class CharacterBlock(nn.Module):
    """LayerNorm before attention and before a GELU layer four times as wide; no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, T, W)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class CharacterModel(nn.Module):
    """Learned positions, tied embeddings; what adds to the residual stream starts smaller by √(2·depth)."""

    def __init__(self, vocabulary: int, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(CharacterBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                small = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * depth) if small else 1.0))

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        x = self.token(ids) + self.place(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token.weight)


def train_characters(text: str, seed: int, steps: int = UPDATES) -> dict:
    """nanoGPT's laptop setting in fp32: seconds of training, and the loss over the whole last tenth of the text."""
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    cut = int(0.9 * len(ids))
    train, held_out = ids[:cut], ids[cut:]
    torch.manual_seed(seed)
    model = CharacterModel(len(letters))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    begun = time.perf_counter()
    for n in range(steps):
        rate = (n + 1) / 101 if n < 100 else 0.1 + 0.45 * (1 + math.cos(math.pi * (n - 100) / (steps - 100)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        starts = torch.randint(len(train) - CONTEXT, (ROWS,)).tolist()
        inputs = torch.stack([train[s : s + CONTEXT] for s in starts])
        targets = torch.stack([train[s + 1 : s + 1 + CONTEXT] for s in starts])
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - begun
    nats, seen = 0.0, 0
    with torch.inference_mode():
        for inputs, targets in _rows(held_out):
            nats += float(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum"))
            seen += targets.numel()
    return {"seconds": seconds, "loss": nats / seen, "tokens": seen}


def _rows(ids: Tensor, many: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """All but the end of `ids` once, in rows that don't overlap."""
    rows = (len(ids) - 1) // CONTEXT
    inputs, targets = (ids[i : i + rows * CONTEXT].view(rows, CONTEXT) for i in (0, 1))
    return zip(inputs.split(many), targets.split(many), strict=True)
