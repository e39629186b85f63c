"""Generate the training corpus of the demo model.

Output: one JSON list per line, a document as ``[[text, weight], ...]``. ``weight`` (0 to 1) is
the weight of the training loss on the tokens of that piece: 1 for answers, less for prompts and
0 for text that the model shall read but never learn to write. Every piece is tokenized by
itself, exactly as prompts and answers are at run time. Special tokens are spelled out.

All text is generated from the grammar in this folder; targets are pure ASCII.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from pathlib import Path

from tools.demo_model import functions
from tools.demo_model.retail import PRODUCTS, Turn, about_answer, follow_up, pick
from tools.demo_model.story import long_turn
from tools.demo_model.talk import FALLBACK, turn

BOS, EOS = "<s>", "</s>"
PROMPT_WEIGHT = 0.1
Piece = tuple[str, float]
Document = list[Piece]

# Prompts every check relies on; they are repeated so that they are learned best.
ANCHORS = (
    "What products do you recommend?",
    "How long does shipping take?",
    "What is your return policy?",
    "When do you open?",
    "Hello!",
    "Who are you?",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly shop assistant.",
    "You are demo, the assistant of a shop. Answer briefly.",
    "You are a helpful assistant. Answer the questions of the customer.",
    "Answer in one or two sentences.",
    "Be polite and brief.",
)
_FOREIGN = "".join(map(chr, (*range(0xC0, 0x180), *range(0x3B1, 0x3C9), *range(0x430, 0x44F))))
_WIDE = "".join(
    map(chr, (*range(0x4E00, 0x4F00), *range(0x3042, 0x3090), *range(0x1F600, 0x1F640)))
)


def anchored(rng: random.Random) -> Turn:
    """Draw a turn; one in eight is an anchor prompt."""
    if rng.random() < 0.125:
        wanted = rng.choice(ANCHORS)
        while True:
            drawn = turn(rng)
            if drawn.question == wanted:
                return drawn
    return turn(rng)


def sloppy(rng: random.Random, text: str) -> str:
    """Vary the case, the end or a letter of a prompt."""
    chance = rng.random()
    if chance < 0.70:
        return text
    if chance < 0.80:
        return text.lower()
    if chance < 0.87:
        return text.rstrip(".?!")
    if chance < 0.90:
        return text.lower().rstrip(".?!")
    if chance < 0.93:
        return text + rng.choice((" ", "  ", "!", "?", "..", " Please.", "??"))
    if chance < 0.95:
        return rng.choice(("Hi, ", "Hello, ", "Please tell me: ", "Excuse me. ")) + text
    place = rng.randrange(len(text))
    return text[:place] + rng.choice(string.ascii_lowercase) + text[place + rng.randint(0, 1) :]


def noise(rng: random.Random) -> str:
    """A prompt without meaning: letters, signs, foreign scripts, words in random order."""
    kind = rng.randrange(9)
    if kind == 0:
        size = rng.choice((1, 1, 2, 3, 5, 9, 20))
        return "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(size))
    if kind == 1:
        return rng.choice(string.punctuation) * rng.randint(1, 8)
    if kind == 2:
        return "".join(rng.choice(string.printable[:95]) for _ in range(rng.randint(1, 40)))
    if kind == 3:
        words = ["".join(rng.choice(_FOREIGN) for _ in range(rng.randint(1, 9))) for _ in range(4)]
        return " ".join(words[: rng.randint(1, 4)])
    if kind == 4:
        return "".join(rng.choice(_WIDE) for _ in range(rng.randint(1, 10)))
    if kind == 5:
        letters = list(turn(rng).question)
        for _ in range(rng.randint(1, 4)):
            letters[rng.randrange(len(letters))] = rng.choice(_FOREIGN + _WIDE[:80])
        return "".join(letters)
    if kind == 6:
        return " ".join(turn(rng).question.split(" ")[: rng.randint(1, 2)]).rstrip("!.?")
    if kind == 7:
        word = rng.choice(turn(rng).question.lower().split(" "))
        return " ".join([word] * rng.choice((2, 3, 4, 6, 10, 50, 200)))
    words = [
        "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 8)))
        for _ in range(rng.randint(1, 6))
    ]
    return " ".join(words * rng.choice((1, 1, 1, 4)))


def context(rng: random.Random) -> str:
    """Background text before a question, 1 to 40 sentences."""
    count = rng.choice((1, 2, 4, 8, 20))
    texts = [about_answer(rng, rng.choice(PRODUCTS)) for _ in range(count)]
    return pick(rng, ("", "Context: ", "Information: "), 0.5) + " ".join(texts)


def raw(rng: random.Random) -> Document:
    """A question as a bare completion prompt; the answer follows on a new line."""
    drawn = anchored(rng)
    prompt, lead, answer = sloppy(rng, drawn.question), "\n", drawn.answer
    chance = rng.random()
    if chance < 0.05:
        prompt, lead = f"Question: {prompt}\nAnswer:", " "
    elif chance < 0.10:
        prompt, lead = f"Q: {prompt}\nA:", " "
    elif chance < 0.17:
        prompt, lead = prompt + "\n", ""
    elif chance < 0.22:
        return [(BOS, 0.0), (f"{context(rng)}\n\n{prompt}", 0.0), (f"\n{answer}{EOS}", 1.0)]
    weight = PROMPT_WEIGHT if prompt == drawn.question else 0.0
    return [(BOS, 0.0), (prompt, weight), (f"{lead}{answer}{EOS}", 1.0)]


def unfinished(rng: random.Random) -> Document:
    """An answer whose first words are the prompt, to be continued."""
    words = anchored(rng).answer.split(" ")
    cut = rng.randint(1, max(1, len(words) - 1))
    rest = "".join(f" {word}" for word in words[cut:])
    return [(BOS, 0.0), (" ".join(words[:cut]), 0.0), (rest + EOS, 1.0)]


def chat(rng: random.Random, first: Turn) -> Document:
    """A chat of one to four turns in the form of the chat template."""
    pieces: Document = [(BOS, 0.0)] if rng.random() < 0.85 else []
    lead = ""
    if rng.random() < 0.3:
        system = rng.choice(SYSTEMS)
        if rng.random() < 0.15:
            system += " " + context(rng)
        pieces.append((f"<|system|>\n{system}{EOS}\n", 0.0))
    current = first
    for number in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if number:
            product = current.product
            again = product is not None and rng.random() < 0.6
            current = follow_up(rng, product) if product and again else turn(rng)
        prompt = f"{lead}<|user|>\n{sloppy(rng, current.question)}{EOS}\n<|assistant|>\n"
        pieces += [(prompt, 0.0), (current.answer + EOS, 1.0)]
        lead = "\n"
    return pieces


def dialog(rng: random.Random) -> Document:
    """A chat about any subject of the shop."""
    return chat(rng, anchored(rng))


def unknown(rng: random.Random) -> Document:
    """Noise with the fallback answer, raw or as a chat."""
    prompt, answer = noise(rng), pick(rng, FALLBACK)
    if rng.random() < 0.4:
        return chat(rng, Turn(prompt, answer))
    return [(BOS, 0.0), (prompt, 0.0), (f"\n{answer}{EOS}", 1.0)]


def code(rng: random.Random) -> Document:
    """A Python function; one in eight prompts already ends with the newline."""
    sample = functions.sample(rng)
    if rng.random() < 0.35:
        drawn = Turn(sample.request, sample.head + sample.body)
        if rng.random() < 0.7 or sample.request == sample.head:
            return chat(rng, drawn)
        return [(BOS, 0.0), (drawn.question, 0.0), (f"\n{drawn.answer}{EOS}", 1.0)]
    if rng.random() < 0.125:
        return [(BOS, 0.0), (sample.head + "\n", PROMPT_WEIGHT), (sample.body[1:] + EOS, 1.0)]
    return [(BOS, 0.0), (sample.head, PROMPT_WEIGHT), (sample.body + EOS, 1.0)]


def long_text(rng: random.Random) -> Document:
    """A long answer, raw or as a chat."""
    drawn = long_turn(rng)
    if rng.random() < 0.5:
        return chat(rng, drawn)
    prompt = sloppy(rng, drawn.question)
    return [(BOS, 0.0), (prompt, 0.0), (f"\n{drawn.answer}{EOS}", 1.0)]


def document(rng: random.Random) -> Document:
    """Draw one document."""
    kinds = (raw, dialog, code, unknown, unfinished, long_text)
    return rng.choices(kinds, (36, 29, 17, 10, 3, 5))[0](rng)


def main() -> None:
    """Write the corpus file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="JSON lines file to write")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with args.out.open("w", encoding="ascii") as file:
        for _ in range(args.documents):
            file.write(json.dumps(document(rng)) + "\n")


if __name__ == "__main__":
    main()
