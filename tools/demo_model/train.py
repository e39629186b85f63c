"""Train the demo model on CPU and export it in Hugging Face format.

Reads the corpus of corpus.py, trains a byte-level BPE tokenizer and then the model. The order
of the data and the initial weights follow from the seed. The last documents of the corpus are
held out for validation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from tools.demo_model import hf_export
from tools.demo_model.model import EMBED, Shape, Weights, hidden_states, init

VALIDATION = 1000  # documents held out
LOG_HIGH = -18.0  # wanted log probability of all bytes above 127 together
Encoded = tuple[list[int], list[float]]  # token ids and the loss weight of each


def encode(tokenizer: Tokenizer, lines: list[str]) -> list[Encoded]:
    """Tokenize documents piece by piece."""
    documents = [json.loads(line) for line in lines]
    pieces = [text for doc in documents for text, _ in doc]
    ids = iter(tokenizer.encode_batch(pieces, add_special_tokens=False))
    result: list[Encoded] = []
    for doc in documents:
        tokens: list[int] = []
        weights: list[float] = []
        for _, weight in doc:
            piece = next(ids).ids
            tokens += piece
            weights += [weight] * len(piece)
        result.append((tokens, weights))
    return result


def pack(documents: Iterator[Encoded], rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill [rows, length + 1] ids and loss weights; each row starts with a new document."""
    ids = torch.zeros(rows, length + 1, dtype=torch.long)
    mask = torch.zeros(rows, length + 1)
    for row in range(rows):
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < length + 1:
            doc = next(documents)
            tokens += doc[0]
            weights += doc[1]
        ids[row] = torch.tensor(tokens[: length + 1])
        mask[row] = torch.tensor(weights[: length + 1])
    return ids, mask


def endless(documents: list[Encoded], seed: int) -> Iterator[Encoded]:
    """Yield the documents in a new order each time round."""
    gen = torch.Generator().manual_seed(seed)
    while True:
        for i in torch.randperm(len(documents), generator=gen).tolist():
            yield documents[i]


def loss_of(
    weights: Weights,
    shape: Shape,
    ids: torch.Tensor,
    mask: torch.Tensor,
    high: torch.Tensor,
    bf16: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted cross entropy in nats per token and the penalty on high bytes."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        states = hidden_states(weights, shape, ids[:, :-1]).float()
    chosen = mask[:, 1:] > 0
    targets, weight = ids[:, 1:][chosen], mask[:, 1:][chosen]
    logits = F.linear(states[chosen], weights[EMBED])
    log_all = torch.logsumexp(logits, dim=-1)
    nll = log_all - logits.gather(1, targets[:, None])[:, 0]
    log_high = torch.logsumexp(logits[:, high], dim=-1) - log_all
    penalty = F.relu(log_high - LOG_HIGH).mean()
    return (nll * weight).sum() / weight.sum(), penalty


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to one hundredth of the peak."""
    if step < 50:
        return peak * (step + 1) / 50
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - 50) / (steps - 50))))


def train(
    documents: list[Encoded], shape: Shape, high: torch.Tensor, args: argparse.Namespace
) -> Weights:
    """Train from scratch; every sixth batch has rows of 2048 tokens instead of 512."""
    weights = init(shape, args.seed)
    for tensor in weights.values():
        tensor.requires_grad_(True)
    matrices = [t for t in weights.values() if t.dim() == 2]
    vectors = [t for t in weights.values() if t.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.peak, betas=(0.9, 0.98))
    stream = endless(documents, args.seed)
    start = time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak)
        rows, length = (2, 2048) if step % 6 == 5 else (8, 512)
        ids, mask = pack(stream, rows, length)
        loss, penalty = loss_of(weights, shape, ids, mask, high, args.bf16)
        optimizer.zero_grad(set_to_none=True)
        (loss + 0.02 * penalty).backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            took = time.monotonic() - start
            print(f"step {step} loss {loss.item():.4f} high {penalty.item():.3f} {took:.0f} s")
    return {name: tensor.detach() for name, tensor in weights.items()}


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=1225)
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="faster where the CPU has bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    shape = Shape()
    lines = args.corpus.read_text(encoding="ascii").splitlines()
    tokenizer = hf_export.train_tokenizer(lines[:20_000], shape.vocab)
    documents = encode(tokenizer, lines)
    high = torch.tensor(hf_export.high_byte_ids(tokenizer))
    print(f"{sum(len(d[0]) for d in documents)} tokens, {len(high)} tokens with high bytes")
    weights = train(documents[VALIDATION:], shape, high, args)
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    with torch.no_grad():
        ids, mask = pack(iter(documents[:VALIDATION]), 32, 512)
        loss, _ = loss_of(rounded, shape, ids, (mask == 1.0).float(), high)
    print(f"validation loss {loss.item():.4f} nats per answer token")
    hf_export.save(args.out, weights, shape, tokenizer)


if __name__ == "__main__":
    main()
