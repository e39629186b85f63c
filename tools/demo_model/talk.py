"""Shop service, gift and small-talk turns of the demo corpus, and the polite fallback answer."""

from __future__ import annotations

import random

from tools.demo_model.retail import (
    DAYS,
    PRODUCTS,
    Turn,
    about_product,
    ask,
    in_category,
    pick,
    recommend,
    recommend_category,
)

PLACES = (
    "Canada", "Germany", "France", "Spain", "Japan", "Italy", "Mexico", "Brazil", "India",
    "Norway",
)  # fmt: skip
RELATIONS = (
    "mother", "father", "sister", "brother", "friend", "wife", "husband", "grandmother",
    "grandfather", "son", "daughter", "teacher", "neighbor", "colleague",
)  # fmt: skip
BUDGETS = (20, 30, 50, 100)

FALLBACK = (
    "Sorry, I did not understand that. Please ask me about our products, prices, shipping or "
    "returns.",
    "I am not sure what you mean. You can ask me about a product, a price or an order.",
)

# Questions | answers, alternatives separated by " / "; the first of each is canonical.
_FIXED = """
Hello! / Hello / Hi / Hi! / Hi there! / Hey / Hello there. / Good day. / Say hello. | Hello! Welcome to the shop. How can I help you today? / Hi! What can I do for you?
Good morning! / Good morning. / Morning! | Good morning! How can I help you today?
Good evening! / Good evening. / Good afternoon. | Good evening! How can I help you?
How are you? / How are you doing? / How is it going? | I am fine, thank you. How can I help you today? / Very well, thank you for asking.
Thank you! / Thanks! / Thanks a lot. / Thank you very much. / Great, thanks. | You are welcome! Have a nice day. / My pleasure. Is there anything else I can do?
Goodbye! / Bye / See you. / Bye! / Good night. | Goodbye! We hope to see you again soon.
Who are you? / What are you? / Are you a robot? / Are you a person? / Introduce yourself. | I am demo, a very small language model. I answer simple questions about a shop.
What is your name? / Do you have a name? / What should I call you? | My name is demo. I am a very small language model.
What can you do? / What can I ask you? / Help / Can you help me? / I need help. / How can you help me? | I can answer questions about products, prices, shipping, returns and opening hours. I can also write a few short Python functions.
Tell me a joke. / Do you know a joke? / Make me laugh. | Why did the kettle go to the shop? It wanted to blow off some steam.
Yes. / Yes please. / Sure. / Ok / Okay. | Great. Which product would you like to know more about?
No. / No thanks. / No, thank you. | No problem. Have a nice day!
This is a test. / Test / test / Testing. / ping / Just a test. | The test works. How can I help you today?
How long does shipping take? / When will my order arrive? / How fast is the delivery? / What is the delivery time? / How long does delivery take? | Shipping takes two to four days. You will get an email when your order leaves our warehouse. / Most orders arrive within four days.
How much is shipping? / What does shipping cost? / Is shipping free? / Is delivery free? / What are the shipping costs? | Shipping costs 5 dollars. It is free for orders over 50 dollars.
Can I track my order? / Where is my order? / How do I track my order? / My order has not arrived. | You can track your order with the link in your email. If it is late, please call us and we will help.
What is your return policy? / How do returns work? / Can I return an item? / How do I return something? / Can I get a refund? / I want to return something. | You can return any product within 30 days. Please keep the receipt and we will refund the full price. / Returns are free within 30 days. Just send the product back to us.
Can I exchange a product? / Can I exchange it for another size? / It does not fit. / The size is wrong. | Yes, you can exchange it for another size within 30 days. The exchange is free.
My order is broken. / The product is broken. / I got the wrong item. / It stopped working. | I am sorry to hear that. Please send it back and we will replace it for free.
Can I cancel my order? / How do I cancel my order? / I want to cancel my order. | Yes, you can cancel your order until it leaves our warehouse. Use the link in your email.
What sizes do you have? / Which sizes do you have? / Do you have large sizes? / What size should I take? | Our clothing comes in small, medium and large. If you are between two sizes, take the larger one.
What size are the shoes? / Which shoe sizes do you have? / How do the shoes fit? | Our shoes come in sizes 36 to 46. They fit true to size.
When do you open? / What are your opening hours? / When are you open? / What time do you open? / When does the shop close? | We are open from Monday to Saturday, from 9 in the morning to 7 in the evening. / The shop opens at 9 and closes at 7. We are closed on Sunday.
Where is the shop? / Where are you? / What is your address? / How do I find you? | The shop is at 12 Harbor Lane, next to the old lighthouse.
How can I pay? / Can I pay by card? / Which payment methods do you take? / Do you take cash? / Can I pay online? | You can pay by card, by bank transfer or in cash at the shop.
Do you have any discounts? / Is there a sale? / Do you have special offers? / Can I get a discount? / What is on sale? | This week all garden products are 10 percent off. Students always get 5 percent off.
Do you sell gift cards? / Can I buy a gift card? / Do you have gift cards? | Yes, we sell gift cards for 10, 25 and 50 dollars.
Do you wrap gifts? / Can you wrap it as a gift? / Is gift wrapping free? | Yes, we wrap gifts for free. Just tell us when you order.
Is there a warranty? / How long is the warranty? / Do your products have a warranty? | All our products come with a two year warranty.
How can I contact you? / What is your phone number? / How do I reach you? / Can I talk to a person? | You can call us during opening hours or write to us by email. We answer within one day.
What do you sell? / What products do you have? / What kind of shop is this? / Tell me about the shop. / What can I buy here? | We sell products for the kitchen, the home, the office, the garden, sports and outdoor trips. We also have toys, clothing and electronics.
What is new? / What are your new products? / Do you have anything new? | The newest products are the smart speaker and the monitor stand. Both arrived this week.
What is the cheapest product? / What is cheap? / Do you have anything cheap? | The cheapest product is the notebook. It costs 8 dollars.
What is the most expensive product? / Which product costs the most? | The most expensive product is the desk chair. It costs 149 dollars.
What is the capital of France? / The capital of France is / Capital of France? | The capital of France is Paris. I know much more about our shop, though.
What is the meaning of life? / What is love? / Are you happy? | That is a big question for a small model. I would rather help you find a good tea pot.
What is the weather like? / Will it rain today? / Is it cold outside? | I do not know the weather, but our rain jacket keeps you dry in any case.
What time is it? / What day is it today? / What is the date? | I do not have a clock, but our wall clock is easy to read.
Tell me a fact. / Tell me something interesting. / Say something. / Surprise me. | The cast iron pan is our oldest product. Some customers have used theirs for thirty years.
What is a language model? / How do you work? / What is an LLM? / Explain how you work. | A language model predicts the next word of a text again and again. I am a very small one.
"""  # noqa: E501


def _fixed() -> list[tuple[list[str], list[str]]]:
    rows = [line.split(" | ") for line in _FIXED.strip().splitlines()]
    return [(q.split(" / "), a.split(" / ")) for q, a in rows]


FIXED = _fixed()


def fixed(rng: random.Random) -> Turn:
    """Turn with a fixed list of wordings."""
    questions, answers = rng.choice(FIXED)
    return Turn(ask(rng, *questions), pick(rng, answers, 0.9))


def gift(rng: random.Random) -> Turn:
    """Gift idea for a relation, with or without a budget in dollars."""
    number = rng.randrange(len(RELATIONS))
    who = RELATIONS[number]
    if rng.random() < 0.5:
        product = PRODUCTS[(number * 11 + 4) % len(PRODUCTS)]
        question = ask(
            rng, f"I need a gift for my {who}.", f"What is a good gift for my {who}?",
            f"Can you help me find a present for my {who}?", f"Gift ideas for my {who}?",
        )  # fmt: skip
        answer = f"A good gift for your {who} is the {product.name}. {product.note}"
        return Turn(question, answer, product)
    budget = rng.choice(BUDGETS)
    cheap = [p for p in PRODUCTS if p.price <= budget]
    product = cheap[(number * 5 + 2) % len(cheap)]
    question = ask(
        rng, f"I need a gift for my {who} under {budget} dollars.",
        f"What can I give my {who} for less than {budget} dollars?",
        f"What is a good gift for my {who} for {budget} dollars?",
    )  # fmt: skip
    answer = (
        f"For your {who} I suggest the {product.name}. It costs {product.price} dollars, so it "
        "fits your budget."
    )
    return Turn(question, answer, product)


def compare(rng: random.Random) -> Turn:
    """Comparison of two products of one category: the cheaper one wins."""
    group = in_category(rng.choice(PRODUCTS).category)
    one, two = rng.sample(group, 2)
    best = one if one.price <= two.price else two
    question = ask(
        rng, f"Which is better, the {one.name} or the {two.name}?",
        f"Should I buy the {one.name} or the {two.name}?",
        f"The {one.name} or the {two.name}?",
    )  # fmt: skip
    answer = (
        f"Both are good. The {one.name} costs {one.price} dollars and the {two.name} costs "
        f"{two.price} dollars. I would start with the {best.name}, because it costs less."
    )
    return Turn(question, answer, best)


def place(rng: random.Random) -> Turn:
    """Shipping abroad."""
    country = rng.choice(PLACES)
    question = ask(
        rng, f"Do you ship to {country}?", f"Can you send it to {country}?",
        f"How long does shipping to {country} take?",
    )  # fmt: skip
    return Turn(question, f"Yes, we ship to {country}. It takes about ten days.")


def day(rng: random.Random) -> Turn:
    """Opening on one day of the week."""
    name = rng.choice(DAYS)
    question = ask(
        rng, f"Are you open on {name}?", f"When do you open on {name}?",
        f"Can I visit the shop on {name}?",
    )  # fmt: skip
    if name == "Sunday":
        return Turn(question, "No, we are closed on Sunday. We open again on Monday at 9.")
    return Turn(question, f"Yes, we are open on {name} from 9 in the morning to 7 in the evening.")


_KINDS = (recommend, recommend_category, about_product, fixed, gift, compare, place, day)
_WEIGHTS = (10, 8, 24, 30, 9, 4, 3, 4)


def turn(rng: random.Random) -> Turn:
    """Draw one turn of any kind."""
    return rng.choices(_KINDS, _WEIGHTS)[0](rng)
