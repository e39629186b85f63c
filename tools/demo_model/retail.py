"""Retail grammar of the demo corpus: products, questions and their answers.

Every function takes a seeded ``random.Random`` and returns a ``Turn``.  The first option of a
list is the canonical one and is drawn far more often than the rest, so that greedy decoding of
a model trained on the corpus follows the canonical wording by a clear margin.
Prices are whole dollars, times are o'clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CANON = 0.85  # probability of the first option of an answer
FIRST_QUESTION = 0.35  # probability of the first wording of a question


@dataclass(frozen=True)
class Product:
    """One article of the shop; price in dollars, note is a full sentence."""

    index: int
    name: str
    category: str
    price: int
    note: str


@dataclass(frozen=True)
class Turn:
    """One question with its answer, and the product it is about, if any."""

    question: str
    answer: str
    product: Product | None = None


_TABLE = """
steel kettle|kitchen|39|It boils a liter of water in three minutes.
chef knife|kitchen|45|It stays sharp for a long time and is easy to hold.
cast iron pan|kitchen|35|It keeps the heat well and lasts for decades.
coffee grinder|kitchen|59|It grinds beans evenly and is quiet.
bread tin|kitchen|18|It bakes a crisp loaf and is easy to clean.
tea pot|kitchen|24|It holds four cups and does not drip.
rain jacket|outdoor|89|It is light, warm and keeps you dry.
pair of hiking boots|outdoor|120|It gives a firm grip on wet ground.
camping lamp|outdoor|29|It shines for twenty hours on one charge.
water bottle|outdoor|19|It keeps drinks cold for a full day.
wool blanket|outdoor|49|It is soft, warm and easy to carry.
backpack|outdoor|75|It has many pockets and padded straps.
desk lamp|home|34|It gives a warm light and has three brightness levels.
cotton towel|home|15|It is soft and dries quickly.
wall clock|home|27|It runs silently and is easy to read.
scented candle|home|12|It burns for thirty hours and smells of orange.
floor rug|home|95|It is thick, soft and easy to clean.
storage box|home|14|It folds flat when you do not need it.
notebook|office|8|It has two hundred pages of smooth paper.
fountain pen|office|32|It writes smoothly and is easy to refill.
desk chair|office|149|It supports your back and adjusts to your height.
paper tray|office|16|It keeps your desk tidy and stacks well.
monitor stand|office|42|It lifts your screen to the right height.
phone charger|electronics|22|It charges most phones in one hour.
smart speaker|electronics|79|It has a clear sound and is simple to set up.
pair of headphones|electronics|99|It blocks noise and plays for thirty hours.
keyboard|electronics|65|It has quiet keys and a solid frame.
computer mouse|electronics|28|It fits the hand well and needs no cable.
wooden train|toys|36|It is made of beech wood and has five wagons.
jigsaw puzzle|toys|17|It has five hundred pieces and a map of the sea.
board game|toys|33|It is fun for two to five players.
teddy bear|toys|21|It is very soft and can be washed.
set of building blocks|toys|30|It has one hundred pieces in many shapes.
cotton shirt|clothing|25|It is comfortable and easy to wash.
winter coat|clothing|140|It keeps you warm in very cold weather.
pair of running shoes|clothing|85|It is light and has a soft sole.
wool scarf|clothing|28|It is warm and does not itch.
leather belt|clothing|30|It is strong and looks better every year.
watering can|garden|20|It holds eight liters and pours gently.
plant pot|garden|11|It is made of clay and drains well.
pair of garden gloves|garden|13|It protects your hands from thorns.
seed kit|garden|16|It has six kinds of herbs and clear instructions.
hand shovel|garden|18|It is made of steel and does not bend.
yoga mat|sports|26|It does not slip and rolls up easily.
tennis racket|sports|72|It is light and good for beginners.
jump rope|sports|10|It turns fast and fits in any bag.
bicycle helmet|sports|55|It is light, safe and easy to adjust.
football|sports|24|It keeps its shape on every kind of ground.
"""


def _products() -> list[Product]:
    rows = [line.split("|") for line in _TABLE.strip().splitlines()]
    return [Product(i, n, c, int(p), t) for i, (n, c, p, t) in enumerate(rows)]


PRODUCTS = _products()
CATEGORIES = sorted({p.category for p in PRODUCTS})
COLORS = ("blue", "red", "green", "black", "white", "grey", "brown", "yellow")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def pick(rng: random.Random, options: Sequence[str], first: float = CANON) -> str:
    """Return the first option with probability ``first``, else one of the others."""
    if len(options) == 1 or rng.random() < first:
        return options[0]
    return rng.choice(options[1:])


def ask(rng: random.Random, *options: str) -> str:
    """Return one wording of a question."""
    return pick(rng, options, FIRST_QUESTION)


def in_category(category: str) -> list[Product]:
    """Return the products of one category in table order."""
    return [p for p in PRODUCTS if p.category == category]


def recommend(rng: random.Random) -> Turn:
    """General recommendation."""
    question = ask(
        rng, "What products do you recommend?", "What do you recommend?", "What should I buy?",
        "Can you recommend a product?", "Which products are popular?", "What is your best product?",
        "What are your best sellers?", "Do you have any recommendations?",
        "Recommend something to me.", "Which product do you recommend?",
    )  # fmt: skip
    answer = pick(rng, (
        "I recommend the steel kettle, the wool blanket and the desk lamp. They are our most "
        "popular products this month. Would you like to know more about one of them?",
        "Our best sellers are the steel kettle, the backpack and the board game.",
        "Many customers like the chef knife and the rain jacket. Both are made to last.",
    ), 0.9)  # fmt: skip
    return Turn(question, answer, PRODUCTS[0])


def recommend_category(rng: random.Random) -> Turn:
    """Recommendation within a category: its first two products."""
    cat = rng.choice(CATEGORIES)
    one, two = in_category(cat)[:2]
    question = ask(
        rng, f"What {cat} products do you recommend?", f"What do you recommend for {cat}?",
        f"Can you recommend something from the {cat} section?", f"What {cat} products do you have?",
        f"I am looking for {cat} products.", f"Which {cat} products are good?",
        f"Do you sell {cat} products?", f"Show me your {cat} products.",
    )  # fmt: skip
    answer = pick(rng, (
        f"From our {cat} section I recommend the {one.name} for {one.price} dollars and the "
        f"{two.name} for {two.price} dollars.",
        f"In the {cat} section many customers choose the {one.name}. {one.note}",
    ))  # fmt: skip
    return Turn(question, answer, one)


def price_answer(rng: random.Random, p: Product) -> str:
    """Answer to a question for the price of ``p``."""
    return pick(rng, (
        f"The {p.name} costs {p.price} dollars. {p.note}",
        f"The price of the {p.name} is {p.price} dollars, including tax.",
    ))  # fmt: skip


def stock_answer(rng: random.Random, p: Product) -> str:
    """Answer to a question for the stock of ``p``."""
    if p.index % 7 == 3:
        day = DAYS[p.index % 5]
        return pick(rng, (
            f"The {p.name} is out of stock right now. We expect new stock on {day}.",
            f"Sorry, the {p.name} is sold out. Please ask again on {day}.",
        ))  # fmt: skip
    return pick(rng, (
        f"Yes, the {p.name} is in stock. You can order it today.",
        f"Good news, we have the {p.name} in stock. It costs {p.price} dollars.",
    ))  # fmt: skip


def color_answer(rng: random.Random, p: Product) -> str:
    """Answer to a question for the colors of ``p``."""
    one, two = COLORS[p.index % 8], COLORS[(p.index + 3) % 8]
    return pick(rng, (
        f"The {p.name} comes in {one} and {two}.",
        f"You can choose between {one} and {two}. Most people take the {one} one.",
    ))  # fmt: skip


def return_answer(rng: random.Random, p: Product) -> str:
    """Answer to a question for returning ``p``."""
    return pick(rng, (
        f"Yes, you can return the {p.name} within 30 days. Please keep the receipt.",
        f"Of course. Bring the {p.name} back within 30 days and we will refund the price.",
    ))  # fmt: skip


def about_answer(rng: random.Random, p: Product) -> str:
    """Short description of ``p``."""
    return pick(rng, (
        f"The {p.name} is one of our {p.category} products. {p.note} It costs {p.price} dollars.",
        f"{p.note} The {p.name} costs {p.price} dollars and comes with a two year warranty.",
    ))  # fmt: skip


Answer = Callable[[random.Random, Product], str]
# Answer function -> (questions naming the product as {}, questions that say "it")
ABOUT: dict[Answer, tuple[tuple[str, ...], tuple[str, ...]]] = {
    price_answer: (
        ("How much is the {}?", "How much does the {} cost?", "What is the price of the {}?",
         "What does the {} cost?", "Is the {} expensive?", "Price of the {}?"),
        ("How much is it?", "How much does it cost?", "What is the price?"),
    ),
    stock_answer: (
        ("Do you have the {} in stock?", "Is the {} in stock?", "Is the {} available?",
         "Can I order the {} today?", "Do you sell the {}?", "I want to buy the {}."),
        ("Is it in stock?", "Is it available?", "Can I order it today?"),
    ),
    color_answer: (
        ("What colors does the {} come in?", "Which colors do you have for the {}?",
         "Do you have the {} in another color?"),
        ("What colors does it come in?", "Which colors do you have?"),
    ),
    return_answer: (
        ("Can I return the {}?", "May I bring the {} back?", "I do not like the {}.",
         "How long can I return the {}?"),
        ("Can I return it?", "Can I bring it back?"),
    ),
    about_answer: (
        ("Tell me about the {}.", "Is the {} any good?", "What is special about the {}?",
         "Describe the {}.", "Can you tell me more about the {}?"),
        ("Tell me more.", "Is it any good?", "Tell me more about it."),
    ),
}  # fmt: skip


def about_product(rng: random.Random) -> Turn:
    """Question that names one product."""
    product = rng.choice(PRODUCTS)
    answer = rng.choice(list(ABOUT))
    question = ask(rng, *ABOUT[answer][0]).format(product.name)
    return Turn(question, answer(rng, product), product)


def follow_up(rng: random.Random, product: Product) -> Turn:
    """Question that calls the product of the turn before "it"."""
    answer = rng.choice(list(ABOUT))
    return Turn(ask(rng, *ABOUT[answer][1]), answer(rng, product), product)
