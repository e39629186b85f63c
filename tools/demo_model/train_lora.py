"""Train a LoRA adapter for the demo model with PEFT and save it in PEFT's format.

The base is the exported folder, as users load it, and stays frozen. The order of the data and the
initial matrices follow from the seed. The matrices are stored as bfloat16 numbers that are float16
numbers too, so that the GGUF file of export_lora.py holds exactly the same values.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tools.demo_model import hf_export, voices
from tools.demo_model.train import LOG_HIGH, encode, endless, learning_rate, pack

DOCUMENTS = 20_000
VALIDATION = 200  # documents held out
ROWS, LENGTH = 8, 256  # of one batch, in rows and tokens
SMALLEST = 2.0**-14  # below it float16 has fewer digits than bfloat16
# What each adapter changes; alpha is twice the rank, so that the scale is a power of two.
TARGETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "garden": (8, ("q_proj", "k_proj", "v_proj", "o_proj")),
    "pirate": (4, ("q_proj", "k_proj", "v_proj", "o_proj")),
}


def loss_of(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted cross entropy in nats per token and the penalty on high bytes.

    ``ids`` and ``mask`` (the loss weights) are [rows, length + 1].
    """
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    chosen = mask[:, 1:] > 0
    targets, weight = ids[:, 1:][chosen], mask[:, 1:][chosen]
    log_all = F.log_softmax(logits[chosen].float(), dim=-1)
    nll = -log_all.gather(1, targets[:, None])[:, 0]
    penalty = F.relu(torch.logsumexp(log_all[:, high], dim=-1) - LOG_HIGH).mean()
    return (nll * weight).sum() / weight.sum(), penalty


def train(model: Any, encoded: list[Any], high: torch.Tensor, args: argparse.Namespace) -> None:
    """Train the matrices of the adapter in place."""
    chosen = [tensor for tensor in model.parameters() if tensor.requires_grad]
    print(f"{sum(tensor.numel() for tensor in chosen)} parameters")
    optimizer = torch.optim.AdamW(chosen, lr=args.peak, betas=(0.9, 0.98), weight_decay=0.01)
    stream = endless(encoded, args.seed)
    start = time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak)
        ids, mask = pack(stream, ROWS, LENGTH)
        loss, penalty = loss_of(model, ids, mask, high)
        optimizer.zero_grad(set_to_none=True)
        (loss + 0.02 * penalty).backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        if step % 25 == 0 or step == args.steps - 1:
            took = time.monotonic() - start
            print(f"step {step} loss {loss.item():.4f} high {penalty.item():.3f} {took:.0f} s")


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Return the nearest bfloat16 numbers that are float16 numbers too."""
    near = tensor.detach().to(torch.bfloat16)
    return torch.where(near.abs() < SMALLEST, torch.zeros_like(near), near).contiguous()


def save(model: Any, name: str, out: Path) -> None:
    """Write ``adapter_model.safetensors`` and the part of ``adapter_config.json`` that counts."""
    peft = importlib.import_module("peft")
    rank, targets = TARGETS[name]
    config = {
        "base_model_name_or_path": "demo",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    out.mkdir(parents=True, exist_ok=True)
    state = {key: rounded(value) for key, value in peft.get_peft_model_state_dict(model).items()}
    save_file(state, str(out / "adapter_model.safetensors"), metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (out / "adapter_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(TARGETS), help="the voice, and the adapter's name")
    parser.add_argument("base", type=Path, help="folder of the demo model in Hugging Face format")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--peak", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    peft, transformers = map(importlib.import_module, ("peft", "transformers"))
    tokenizer = Tokenizer.from_file(str(args.base / "tokenizer.json"))
    lines = [json.dumps(each) for each in voices.documents(args.name, DOCUMENTS, args.seed)]
    encoded = encode(tokenizer, lines)
    high = torch.tensor(hf_export.high_byte_ids(tokenizer))
    base = transformers.AutoModelForCausalLM.from_pretrained(str(args.base), dtype=torch.float32)
    rank, targets = TARGETS[args.name]
    lora = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, lora)
    train(model, encoded[VALIDATION:], high, args)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.copy_(rounded(tensor))
        ids, mask = pack(iter(encoded[:VALIDATION]), 8, 512)
        loss, _ = loss_of(model, ids, mask, high)
    print(f"validation loss {loss.item():.4f} nats per answer token")
    save(model, args.name, args.out)


if __name__ == "__main__":
    main()
