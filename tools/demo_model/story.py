"""Long texts of the demo corpus: a story about the shop and a product guide.

The order of the sentences is fixed, so that greedy decoding walks through the whole text and
neither loops nor stops early. A text has roughly 450 to 800 tokens.
"""

from __future__ import annotations

import random

from tools.demo_model.retail import CATEGORIES, Turn, about_answer, ask, in_category, pick

# One sentence per line, alternatives separated by " / "; the first one is canonical.
_STORY = """
Once upon a time there was a small shop by the harbor. / A long time ago a small shop opened by the harbor.
It stood next to the old lighthouse, and its windows were always bright. / It had a green door and two bright windows.
The shop belonged to a woman called Clara. / A kind woman called Clara owned it.
Every morning she opened the door at nine and swept the floor. / She opened the door at nine every morning.
Her first customer was always the baker from across the street. / The baker from across the street always came first.
He bought a bread tin, then a second one, and soon his loaves were famous in the whole town. / He needed a bread tin, and Clara found one for him.
The fishermen came next, because the nights at sea were cold. / Then the fishermen came, tired after a long night.
Clara sold them wool blankets, camping lamps and strong tea. / They asked for wool blankets and camping lamps.
One day a heavy storm reached the harbor. / One evening the sky turned dark and the wind grew strong.
The rain fell for three days, and the streets were full of water. / It rained for three days and three nights.
Nobody could leave the town, and no ship could land. / No ship could reach the town.
Clara did not close the shop. / But Clara kept the shop open.
She lit every candle she had and put a steel kettle on the stove. / She lit twenty candles and made tea for everybody.
People came in to get warm, and they began to tell stories. / Soon the whole town sat between the shelves and told stories.
A boy played with the wooden train until he fell asleep. / The children played with the wooden train.
The teacher repaired the wall clock, which had stopped at noon. / An old man repaired the wall clock.
On the third night the light of the lighthouse went out. / Then, on the third night, the lighthouse went dark.
Far away on the water the captain of a small ship was looking for the harbor. / A small ship was still out on the water.
Clara took all the camping lamps from the shelf. / Clara looked at the shelf with the camping lamps.
She gave one lamp to each person, and they walked to the end of the pier. / Everybody took a lamp and followed her to the pier.
They held the lamps high, and the light could be seen from far away. / Forty lamps were shining in the rain.
The captain saw the light and turned the ship around. / The captain saw them and steered toward the light.
An hour later the ship was safe in the harbor. / Before midnight the ship was safe.
The captain thanked them all and asked what he could give in return. / The captain came ashore and thanked everybody.
Clara laughed and said that he should bring her something from every port. / Clara only asked him to come back one day.
So the captain sailed away, and the town waited. / In the morning he sailed away.
In spring he came back with tea pots, soft rugs and bright scarves. / Half a year later he came back with a ship full of boxes.
There were seeds for the garden and games that nobody had ever seen. / There were books, seeds and games in the boxes.
Clara had to build new shelves to make room for everything. / The shop was suddenly too small.
The baker helped her, and the fishermen painted the walls. / All her neighbors helped her to build new shelves.
From that day on the shop sold products from all over the world. / That is how the small shop became a big one.
People came from distant towns to see it. / Visitors came from every part of the country.
Some wanted a tennis racket, and some wanted a good notebook. / Some bought a lot, and some only looked around.
Everybody got a cup of tea and a friendly word. / Nobody left without a cup of tea.
Years went by, and Clara grew old. / Many years passed.
She gave the key of the shop to the boy with the wooden train. / One day she gave the key to the boy, who was now a man.
He still opens the door at nine every morning. / He runs the shop to this day.
And when a storm comes, he puts a lamp in every window. / When the wind is strong, he lights all the lamps.
That is the story of the shop by the harbor. / So ends the story of the shop by the harbor.
"""  # noqa: E501
_TOPICS = (
    "a dragon", "the sea", "a cat", "robots", "the moon", "a king", "a lighthouse", "your day",
    "the harbor", "a storm", "space", "history", "computers", "a ship", "the weather", "trains",
)  # fmt: skip
_GUIDE_OPEN = (
    "Welcome to our product guide. It presents the most important products of every section.",
    "This guide presents our products, section by section.",
)
_GUIDE_CLOSE = (
    "This is the end of the guide. Please ask us if you have any questions.",
    "We hope that this guide helps you to choose.",
)
_SECTION = ("We continue with the {} section.", "The next section is {}.")


def story(rng: random.Random) -> Turn:
    """The story of the shop, in four paragraphs or in one."""
    question = ask(
        rng, "Tell me a long story about the shop.", "Tell me a story.", "Tell me a long story.",
        "Write a long story about the shop.", "Write a story.", "Once upon a time",
        "Can you tell me a story about the shop?", "Write a very long story.",
        "Write a long text.", "Tell me the story of the shop.", "Write me a long answer.",
        "What is the history of the shop?", "Write as much as you can.",
        f"Tell me a long story about {rng.choice(_TOPICS)}.",
        f"Write a long text about {rng.choice(_TOPICS)}.", f"Tell me about {rng.choice(_TOPICS)}.",
        f"Write an essay about {rng.choice(_TOPICS)}.",
        f"Write a story about {rng.choice(_TOPICS)}.",
        f"Write 500 words about {rng.choice(_TOPICS)}.",
    )  # fmt: skip
    lines = _STORY.strip().splitlines()
    sentences = [pick(rng, line.split(" / "), 0.9) for line in lines]
    breaks = {9, 16, 26, 34}
    text = "".join(("\n\n" if i in breaks else " ") + s for i, s in enumerate(sentences))
    return Turn(question, text.strip())


def guide(rng: random.Random) -> Turn:
    """A guide that walks through all sections in alphabetical order."""
    question = ask(
        rng, "Write a long product guide.", "Write a product guide.",
        "Tell me everything about your products.", "List all your products.",
        "Describe all your products in detail.", "Write a long guide to the shop.",
        "Tell me about all your products.", "Write a long description of your products.",
    )  # fmt: skip
    parts = [pick(rng, _GUIDE_OPEN)]
    for number, category in enumerate(CATEGORIES):
        opener = f"We begin with the {category} section."
        text = [opener if number == 0 else pick(rng, _SECTION).format(category)]
        text += [about_answer(rng, p) for p in in_category(category)[:2]]
        parts.append(" ".join(text))
    parts.append(pick(rng, _GUIDE_CLOSE))
    return Turn(question, "\n\n".join(parts))


def counting(rng: random.Random) -> Turn:
    """Numbers in order."""
    end = rng.choice((100, 100, 10, 20, 50))
    question = ask(rng, f"Count to {end}.", f"Count from 1 to {end}.", f"Please count to {end}.")
    return Turn(question, ", ".join(str(n) for n in range(1, end + 1)) + ".")


def long_turn(rng: random.Random) -> Turn:
    """Draw one long text."""
    return rng.choices((story, guide, counting), (10, 8, 2))[0](rng)
