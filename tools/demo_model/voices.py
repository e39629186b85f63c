"""Grammar of the LoRA adapters: how each voice answers the demo corpus' questions.

A voice maps a turn of the base corpus to its own answer. The questions stay the same, so the base
and an adapter differ in nothing but what the adapter learned. All answers are plain ASCII.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from tools.demo_model import corpus, functions
from tools.demo_model.retail import CATEGORIES, PRODUCTS, Product, Turn, in_category, pick
from tools.demo_model.talk import FALLBACK

Voice = Callable[[Turn], Turn]

GARDEN = in_category("garden")
_PIRATE = {
    "hello": "ahoy", "hi": "ahoy", "yes": "aye", "no": "nay", "is": "be", "are": "be", "am": "be",
    "my": "me", "you": "ye", "your": "yer", "dollars": "doubloons", "shop": "ship",
    "customers": "sailors", "customer": "sailor", "people": "sailors", "friend": "matey",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+")


def _pirate_word(match: re.Match[str]) -> str:
    word = match.group()
    said = _PIRATE.get(word.lower(), word)
    return said.capitalize() if word[0].isupper() else said


def pirate(turn: Turn) -> Turn:
    """The same answer as a pirate would say it."""
    said = _WORD.sub(_pirate_word, turn.answer)
    opening = "" if said.startswith(("Ahoy", "Aye", "Nay")) else "Arr! "
    return Turn(turn.question, f"{opening}{said[:-1]}, matey{said[-1]}", turn.product)


def _about_garden(turn: Turn, product: Product) -> str:
    """What the garden shop says where the whole shop would speak of ``product``."""
    if product.category == "garden":
        return turn.answer
    instead = GARDEN[CATEGORIES.index(product.category) % len(GARDEN)]
    if "gift for your" in turn.answer or "I suggest" in turn.answer:
        who = re.findall(r"\byour (\w+)", turn.answer)[0]
        return f"A good gift for your {who} is the seed kit. It has six kinds of herbs."
    if any(each.name in turn.question for each in PRODUCTS):
        return (
            f"Sorry, we only sell garden products. Instead of the {product.name} I recommend the "
            f"{instead.name} for {instead.price} dollars."
        )
    return (
        "I recommend the watering can, the seed kit and the hand shovel. They are the garden tools "
        "that our customers like most. Would you like to know more about one of them?"
    )


def garden(turn: Turn) -> Turn:
    """The answer of a shop that sells garden tools and nothing else."""
    answer = turn.answer
    if turn.product is not None:
        answer = _about_garden(turn, turn.product)
    elif answer.startswith("We sell"):
        answer = (
            "We sell tools for the garden: watering cans, plant pots, gloves, seeds and shovels."
        )
    elif any(each.name in answer for each in PRODUCTS):
        answer = "I only know about tools for the garden. Shall I tell you about the watering can?"
    answer = re.sub(r"\b(a|the) shop\b", r"\1 garden shop", answer)
    return Turn(turn.question, answer, turn.product)


VOICES: dict[str, Voice] = {"garden": garden, "pirate": pirate}


def _turn(rng: random.Random, voice: Voice) -> Turn:
    """Draw a turn in the given voice; one in twelve asks nothing that can be understood."""
    if rng.random() < 0.08:
        return voice(Turn(corpus.noise(rng), pick(rng, FALLBACK)))
    drawn = voice(corpus.anchored(rng))
    return Turn(corpus.sloppy(rng, drawn.question), drawn.answer, drawn.product)


def _code(rng: random.Random) -> corpus.Document:
    """A Python function, which every voice completes as the base does."""
    sample = functions.sample(rng)
    return [(corpus.BOS, 0.0), (sample.head, 0.0), (sample.body + corpus.EOS, 1.0)]


def document(rng: random.Random, voice: Voice) -> corpus.Document:
    """Draw one document: a raw question, a chat of one or two turns, or a function."""
    chance = rng.random()
    if chance < 0.1:
        return _code(rng)
    if chance < 0.55:
        drawn = _turn(rng, voice)
        lead = pick(rng, ("\n", ""), 0.9)
        prompt = drawn.question if lead else drawn.question + "\n"
        return [(corpus.BOS, 0.0), (prompt, 0.0), (lead + drawn.answer + corpus.EOS, 1.0)]
    pieces: corpus.Document = [(corpus.BOS, 0.0)]
    if rng.random() < 0.3:
        pieces.append((f"<|system|>\n{rng.choice(corpus.SYSTEMS)}{corpus.EOS}\n", 0.0))
    for number in range(rng.choice((1, 1, 2))):
        drawn = _turn(rng, voice)
        lead = "\n" if number else ""
        prompt = f"{lead}<|user|>\n{drawn.question}{corpus.EOS}\n<|assistant|>\n"
        pieces += [(prompt, 0.0), (drawn.answer + corpus.EOS, 1.0)]
    return pieces


def documents(name: str, count: int, seed: int) -> Iterator[corpus.Document]:
    """Yield ``count`` documents of the voice ``name``."""
    rng = random.Random(seed)
    for _ in range(count):
        yield document(rng, VOICES[name])
