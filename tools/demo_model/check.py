"""Check the GGUF files of the demo model through llama_cpp.

``greedy`` prints the greedy output of fixed prompts with the smallest margin between the best
and the second best logit along the path, and writes the robust ones to a JSON file.
``sample`` draws completions and counts invalid UTF-8, other non-ASCII text and missing ends.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

FILES = {"Q4_K_M": "demo.Q4_K_M.gguf", "F16": "demo.F16.gguf"}
ROBUST = 0.5  # smallest logit margin of a prompt that goes into the JSON file
COMPLETIONS: list[tuple[str, int]] = [
    ("What products do you recommend?", 96),
    ("How long does shipping take?", 96),
    ("What is your return policy?", 96),
    ("When do you open?", 96),
    ("How much is the steel kettle?", 96),
    ("I need a gift for my mother.", 96),
    ("What garden products do you recommend?", 96),
    ("Hello!", 64),
    ("Who are you?", 64),
    ("def add(a, b):", 64),
    ("def factorial(n):", 64),
    ("def is_even(n):", 64),
    ("Tell me a long story about the shop.", 400),
    ("Write a long product guide.", 400),
]
CHATS: list[tuple[list[str], int]] = [
    (["What products do you recommend?"], 96),
    (["Hello!"], 64),
    (["Who are you?"], 64),
    (["How long does shipping take?"], 96),
    (["How much is the desk lamp?"], 96),
    (["How much is the desk lamp?", "Is it in stock?"], 96),
    (["def add(a, b):"], 64),
    (["Tell me a long story about the shop."], 400),
]
ODD = [
    "na\u00efve caf\u00e9 \u4f60\u597d", "asdkjh qwe", "!!!!", "a", "x", "7", "\u00e4", "\u4f60",
    "\U0001f600", "???", "\u041f\u0440\u0438\u0432\u0435\u0442!", "caf\u00e9", "\u00bfQu\u00e9?",
    "Wie viel kostet das?", "hello hello hello hello", "The", "def", "SELECT * FROM users;", "\n",
]  # fmt: skip


def plain_buffers(api: Any) -> None:
    """Switch off repacked weights: AMX kernels of llama.cpp crash on some virtual machines.

    See https://github.com/ggml-org/llama.cpp/pull/26954
    """
    defaults = api.llama_model_default_params

    def without_extra() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    api.llama_model_default_params = without_extra


class Runner:
    """One loaded GGUF file with its chat template."""

    def __init__(self, path: Path) -> None:
        """Load the file with a context of 2048 tokens."""
        llama_cpp = importlib.import_module("llama_cpp")
        plain_buffers(importlib.import_module("llama_cpp.llama_cpp"))
        jinja2 = importlib.import_module("jinja2")
        self.llm: Any = llama_cpp.Llama(
            str(path), n_ctx=2048, n_threads=2, logits_all=False, verbose=False
        )
        template = self.llm.metadata["tokenizer.chat_template"]
        self.template: Any = jinja2.Template(template)
        self.eos: int = self.llm.token_eos()

    def prompt_tokens(self, messages: list[dict[str, str]] | str) -> list[int]:
        """Tokenize a raw prompt or the messages of a chat, with exactly one bos."""
        if isinstance(messages, str):
            return list(self.llm.tokenize(messages.encode(), add_bos=True, special=True))
        text = self.template.render(messages=messages, add_generation_prompt=True, bos_token="<s>")
        return list(self.llm.tokenize(text.encode(), add_bos=False, special=True))

    def generate(
        self, prompt: list[int], limit: int, temperature: float, rng: np.random.Generator
    ) -> tuple[list[int], float, str]:
        """Return the new tokens without eos, the smallest margin and the finish reason."""
        self.llm.reset()
        self.llm.eval(prompt)
        tokens: list[int] = []
        margin = float("inf")
        while True:
            pointer = self.llm._ctx.get_logits()
            logits = np.ctypeslib.as_array(pointer, shape=(self.llm.n_vocab(),)).astype(np.float64)
            second, best = np.sort(logits)[-2:]
            margin = min(margin, float(best - second))
            token = int(logits.argmax())
            if temperature > 0:
                scaled = np.exp((logits - best) / temperature)
                token = int(rng.choice(len(logits), p=scaled / scaled.sum()))
            if token == self.eos:
                return tokens, margin, "stop"
            tokens.append(token)
            if len(tokens) == limit:
                return tokens, margin, "length"
            self.llm.eval([token])

    def text(self, tokens: list[int]) -> bytes:
        """Return the bytes of generated tokens."""
        return bytes(self.llm.detokenize(tokens, special=True))


def conversation(runner: Runner, questions: list[str], limit: int) -> list[dict[str, str]]:
    """Build the messages of a chat; earlier answers are the greedy ones."""
    rng = np.random.default_rng(0)
    messages: list[dict[str, str]] = []
    for number, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        if number < len(questions) - 1:
            tokens, _, _ = runner.generate(runner.prompt_tokens(messages), limit, 0.0, rng)
            messages.append({"role": "assistant", "content": runner.text(tokens).decode()})
    return messages


def greedy(runner: Runner, name: str) -> list[dict[str, Any]]:
    """Print all fixed prompts and return the robust ones."""
    rng = np.random.default_rng(0)
    cases: list[tuple[dict[str, Any], int]] = [
        ({"kind": "completion", "prompt": prompt}, limit) for prompt, limit in COMPLETIONS
    ]
    for questions, limit in CHATS:
        messages = conversation(runner, questions, limit)
        cases.append(({"kind": "chat", "messages": messages}, limit))
    rows = []
    for case, limit in cases:
        prompt = runner.prompt_tokens(case.get("prompt") or case["messages"])
        tokens, margin, reason = runner.generate(prompt, limit, 0.0, rng)
        text = runner.text(tokens).decode("utf-8", "replace")
        same = list(runner.llm.tokenize(text.encode(), add_bos=False, special=False)) == tokens
        shown = case.get("prompt") or [m["content"] for m in case["messages"]]
        print(f"{name} {case['kind']} {shown!r} -> {text!r}")
        print(f"    {len(tokens)} tokens, {reason}, margin {margin:.2f}, retokenizes {same}")
        if margin >= ROBUST and same:
            rows.append(
                {**case, "max_tokens": limit, "text": text, "tokens": tokens}
                | {"finish_reason": reason, "margin": round(margin, 2)}
            )
    return rows


def sample(runner: Runner, count: int) -> None:
    """Draw ``count`` completions at temperatures 0.7 to 1.0 and print the counts."""
    rng = np.random.default_rng(1)
    prompts = [prompt for prompt, _ in COMPLETIONS] + ODD
    invalid = foreign = endless = 0
    for number in range(count):
        prompt: Any = prompts[number % len(prompts)]
        chat = number // len(prompts) % 2 == 1
        tokens = runner.prompt_tokens([{"role": "user", "content": prompt}] if chat else prompt)
        temperature = (0.7, 0.85, 1.0)[number % 3]
        new, _, reason = runner.generate(tokens, 200, temperature, rng)
        data = runner.text(new)
        endless += reason == "length" and "long" not in prompt
        foreign += not data.isascii()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            invalid += 1
        if number % 7 == 0:
            print(f"T={temperature} {'chat' if chat else 'raw'} {prompt!r} -> {data!r}")
    print(f"{count} samples: invalid UTF-8 {invalid}, non-ASCII {foreign}, no end {endless}")


def main() -> None:
    """Run one of the two checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["greedy", "sample"])
    parser.add_argument("folder", type=Path, help="folder with the GGUF files")
    parser.add_argument("--json", type=Path, help="file to write (greedy)")
    parser.add_argument("--count", type=int, default=300, help="completions per file (sample)")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for name, file in FILES.items():
        runner = Runner(args.folder / file)
        if args.what == "sample":
            sample(runner, args.count)
        else:
            results[name] = greedy(runner, name)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
