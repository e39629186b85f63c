"""Small Python functions of the demo corpus: a header line, an optional docstring, a body."""

from __future__ import annotations

import random
from dataclasses import dataclass

# names / arguments / docstring / body lines; {0}, {1}, {2} stand for the argument names and
# "~" separates lines of the body. Alternatives are separated by "," for names and by ";" for
# argument lists; the first of each is canonical.
_TABLE = """
add,plus,add_numbers,sum_two|a, b;x, y;left, right|Return the sum of two numbers.|return {0} + {1}
subtract,minus,difference|a, b;x, y|Return the difference of two numbers.|return {0} - {1}
multiply,times,product_of|a, b;x, y|Return the product of two numbers.|return {0} * {1}
divide,safe_divide|a, b;x, y|Divide two numbers.|if {1} == 0:~    return 0~return {0} / {1}
square,squared|x;n;value|Return the square of a number.|return {0} * {0}
cube,cubed|x;n;value|Return the cube of a number.|return {0} * {0} * {0}
double,twice|x;n;value|Return twice the value.|return 2 * {0}
is_even,even|n;x;number|Tell whether a number is even.|return {0} % 2 == 0
is_odd,odd|n;x;number|Tell whether a number is odd.|return {0} % 2 == 1
is_positive,positive|n;x;number|Tell whether a number is above zero.|return {0} > 0
factorial,fact|n;x;number|Return the factorial of a number.|if {0} <= 1:~    return 1~return {0} * NAME({0} - 1)
fibonacci,fib|n;x;number|Return a Fibonacci number.|if {0} < 2:~    return {0}~return NAME({0} - 1) + NAME({0} - 2)
maximum,max_of_two,larger|a, b;x, y|Return the larger value.|if {0} > {1}:~    return {0}~return {1}
minimum,min_of_two,smaller|a, b;x, y|Return the smaller value.|if {0} < {1}:~    return {0}~return {1}
absolute,absolute_value,abs_value|x;n;value|Return the value without its sign.|if {0} < 0:~    return -{0}~return {0}
sign,sign_of|x;n;value|Return 1, 0 or -1.|if {0} > 0:~    return 1~if {0} < 0:~    return -1~return 0
clamp,limit|value, low, high;x, low, high|Keep a value between two limits.|return max({1}, min({0}, {2}))
average,mean|numbers;values;items|Return the average of the numbers.|return sum({0}) / len({0})
total,sum_list,sum_all|numbers;values;prices|Return the sum of the list.|result = 0~for item in {0}:~    result += item~return result
product,multiply_all|numbers;values;items|Multiply all numbers.|result = 1~for item in {0}:~    result *= item~return result
count,count_item,count_value|items, value;values, target|Count how often a value occurs.|return {0}.count({1})
contains,has_item|items, value;values, target|Tell whether a value is in the list.|return {1} in {0}
first,head,first_item|items;values;data|Return the first item.|return {0}[0]
last,tail_item,last_item|items;values;data|Return the last item.|return {0}[-1]
length,size,count_items|items;values;text|Return the number of items.|return len({0})
reverse,reverse_string,reversed_text|text;s;word|Return the text backwards.|return {0}[::-1]
reverse_list,backwards|items;values;data|Return the list backwards.|return list(reversed({0}))
is_palindrome,palindrome|text;s;word|Tell whether a text reads the same backwards.|return {0} == {0}[::-1]
count_vowels,vowels|text;s;word|Count the vowels of a text.|return sum(1 for c in {0} if c in "aeiou")
count_words,word_count|text;s;line|Count the words of a text.|return len({0}.split())
to_upper,upper,shout|text;s;word|Return the text in capital letters.|return {0}.upper()
to_lower,lower|text;s;word|Return the text in small letters.|return {0}.lower()
join_words,join|words;items;parts|Join words with spaces.|return " ".join({0})
repeat,repeat_text|text, n;s, times|Repeat a text.|return {0} * {1}
greet,hello,say_hello|name;person;user|Greet a person.|return "Hello, " + {0} + "!"
unique,remove_duplicates|items;values;data|Return the items without duplicates.|return list(dict.fromkeys({0}))
flatten,flatten_list|rows;lists;items|Join a list of lists.|return [item for row in {0} for item in row]
squares,square_all|numbers;values;items|Return the squares of the numbers.|return [n * n for n in {0}]
evens,filter_even|numbers;values;items|Return the even numbers.|return [n for n in {0} if n % 2 == 0]
gcd,greatest_common_divisor|a, b;x, y|Return the greatest common divisor.|while {1}:~    {0}, {1} = {1}, {0} % {1}~return {0}
power,pow_of|base, exponent;x, n|Raise a number to a power.|return {0} ** {1}
is_prime,prime|n;x;number|Tell whether a number is prime.|if {0} < 2:~    return False~for i in range(2, {0}):~    if {0} % i == 0:~        return False~return True
find,find_index,index_of|items, value;values, target|Return the position of a value.|for i, item in enumerate({0}):~    if item == {1}:~        return i~return -1
total_price,order_total|prices;items;cart|Return the price of an order.|return sum({0})
apply_discount,discount,discounted_price|price, percent;amount, percent|Return the price after a discount.|return {0} * (1 - {1} / 100)
shipping_cost,shipping|total;price;amount|Shipping is free over 50 dollars.|if {0} > 50:~    return 0~return 5
add_tax,with_tax|price, rate;amount, rate|Return the price with tax.|return {0} * (1 + {1})
in_stock,is_available|product, stock;item, stock|Tell whether a product is in stock.|return {1}.get({0}, 0) > 0
cheapest,cheapest_product|products;items;prices|Return the cheapest product.|return min({0}, key=lambda p: p["price"])
area,rectangle_area|width, height;w, h|Return the area of a rectangle.|return {0} * {1}
circle_area,area_of_circle|radius;r|Return the area of a circle.|return 3.14159 * {0} ** 2
to_celsius,fahrenheit_to_celsius|f;degrees|Convert a temperature.|return ({0} - 32) * 5 / 9
to_fahrenheit,celsius_to_fahrenheit|c;degrees|Convert a temperature.|return {0} * 9 / 5 + 32
swap,swap_values|a, b;x, y|Return the values in the other order.|return {1}, {0}
read_file,load_file,read_text|path;name|Read a text file.|with open({0}) as f:~    return f.read()
main,run,start||Print a greeting.|print("Hello, world!")
"""  # noqa: E501
_VERBS = (
    "get", "make", "update", "build", "check", "compute",
    "find", "create", "process", "handle", "format", "show",
)  # fmt: skip
_NOUNS = (
    "value", "item", "order", "user", "data", "name", "result",
    "list", "price", "table", "node", "page", "key", "text",
)  # fmt: skip
_ARGUMENTS = (
    "a", "b", "c", "x", "y", "n", "s", "value", "item",
    "items", "data", "name", "text", "user", "order", "key", "path", "size",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A function: ``head`` is the prompt (without newline), ``body`` starts with a newline.

    ``request`` asks for the function in words.
    """

    head: str
    body: str
    request: str


def _indent(lines: list[str]) -> str:
    return "".join(f"\n    {line}" for line in lines)


def _first(rng: random.Random, options: list[str], probability: float) -> str:
    return options[0] if rng.random() < probability else rng.choice(options)


def _unknown(rng: random.Random) -> Sample:
    """Function of an unknown name: it returns its first argument."""
    name = rng.choice(["foo", "bar", "f", "g", "func", "test", "solve", "my_function"])
    if rng.random() < 0.7:
        name = f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}"
    arguments = rng.sample(_ARGUMENTS, rng.randint(0, 3))
    head = f"def {name}({', '.join(arguments)}):"
    body = _indent([f"return {arguments[0]}" if arguments else "return None"])
    return Sample(head, body, head)


def sample(rng: random.Random) -> Sample:
    """Draw one function; the canonical names and arguments come up most often."""
    if rng.random() < 0.12:
        return _unknown(rng)
    row = rng.choice(_TABLE.strip().splitlines())
    names, arguments, doc, body = row.split("|")
    name = _first(rng, names.split(","), 0.5)
    args = _first(rng, arguments.split(";"), 0.5)
    parts = args.split(", ")
    head = f"def {name}({args}):"
    if rng.random() < 0.2:
        types = rng.choice(["int", "float", "str"])
        head = f"def {name}({', '.join(f'{p}: {types}' for p in parts if p)}):"
    if rng.random() < 0.3:
        head += _indent([f'"""{doc}"""'])
    lines = [s.replace("NAME", name).format(*parts) for s in body.split("~")]
    requests = (
        f"Write a Python function called {name}.",
        f"Write a Python function {name}({args}).",
        f"Write a Python function. {doc}",
        f"Write a function: {doc}",
        head,
    )
    return Sample(head, _indent(lines), rng.choice(requests))
