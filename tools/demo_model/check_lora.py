"""Greedy answers of the demo model with and without its LoRA adapters.

``greedy`` computes them with transformers and PEFT in float32, with the smallest margin between
the best and the second best logit along the path. ``compare`` asks a server that speaks the OpenAI
completion protocol for the same answers and prints where they differ.
"""

from __future__ import annotations

import argparse
import importlib
import json
import urllib.request
from pathlib import Path
from typing import Any

BASE = "base"
LIMIT = 96  # new tokens
PROMPTS = (
    "What products do you recommend?",
    "I need a gift for my mother.",
    "Hello!",
    "Who are you?",
    "What is your return policy?",
)


def answer(model: Any, tokenizer: Any, prompt: str, eos: int) -> dict[str, Any]:
    """One greedy answer; tokens are the new ones without eos, the margin is in logits."""
    torch = importlib.import_module("torch")
    ids = tokenizer.encode(prompt).ids
    new: list[int] = []
    margin, reason = float("inf"), "length"
    while len(new) < LIMIT:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1].float()
        best, second = torch.topk(logits, 2).values.tolist()
        margin = min(margin, best - second)
        token = int(logits.argmax())
        if token == eos:
            reason = "stop"
            break
        new.append(token)
    text = tokenizer.decode(new)
    return {
        "kind": "completion", "prompt": prompt, "max_tokens": LIMIT, "text": text,
        "finish_reason": reason, "margin": round(margin, 2), "tokens": len(new),
    }  # fmt: skip


def greedy(folder: Path, adapters: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """Answers of the base and of each adapter, by name.

    Raises SystemExit where the base under a switched-off adapter differs from the plain base.
    """
    torch, peft, transformers, tokenizers = map(
        importlib.import_module, ("torch", "peft", "transformers", "tokenizers")
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"]

    def rows(model: Any) -> list[dict[str, Any]]:
        return [answer(model, tokenizer, prompt, eos) for prompt in PROMPTS]

    def plain() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)

    results = {BASE: rows(plain())}
    for path in adapters:
        model = peft.PeftModel.from_pretrained(plain(), str(path)).eval()
        results[path.name] = rows(model)
        with model.disable_adapter():
            if rows(model) != results[BASE]:
                raise SystemExit(f"{path.name}: switched off, it still changes the answers")
    return results


def compare(url: str, model: str, rows: list[dict[str, Any]]) -> int:
    """Ask the server for each prompt and return how many answers differ."""
    wrong = 0
    for row in rows:
        body = {"model": model, "prompt": row["prompt"], "max_tokens": LIMIT, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            text = json.load(reply)["choices"][0]["text"]
        verdict = "same" if text == row["text"] else f"{text!r}, not {row['text']!r}"
        wrong += verdict != "same"
        print(f"{model} {row['prompt']!r}: {verdict}")
    return wrong


def main() -> None:
    """Make the file of answers, or compare a server with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    make = what.add_parser("greedy")
    make.add_argument("folder", type=Path, help="folder of the demo model")
    make.add_argument("adapters", type=Path, nargs="+", help="folders of adapters")
    make.add_argument("--json", type=Path, help="file to write")
    ask = what.add_parser("compare")
    ask.add_argument("url", help="the server, such as http://127.0.0.1:8000")
    ask.add_argument("json", type=Path, help="file of answers")
    ask.add_argument("models", nargs="+", help="name in the file, '=', the model's name there")
    args = parser.parse_args()
    if args.what == "compare":
        wanted = json.loads(args.json.read_text(encoding="utf-8"))
        pairs = [each.split("=", 1) for each in args.models]
        raise SystemExit(sum(compare(args.url, there, wanted[name]) for name, there in pairs) > 0)
    results = greedy(args.folder, args.adapters)
    for name, rows in results.items():
        for row in rows:
            print(f"{name} {row['prompt']!r} -> {row['text']!r} (margin {row['margin']})")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
