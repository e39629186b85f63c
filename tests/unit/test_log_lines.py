"""What is shown of an engine's log, however it is written and in whatever pieces it comes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervision.lines import CAP, Lines, harmless, split

LONG = b"x" * (2 * CAP + 7)
OUTPUT = st.lists(
    st.sampled_from(
        [b"a", b"\r", b"\n", b"\r\n", b"\x1b[31m", b"\x00", b"\xff", "é".encode(), LONG]
    )
).map(b"".join)


@given(OUTPUT, st.lists(st.integers(0, 2**17), max_size=6))
def test_pieces_make_the_lines_of_the_whole_and_none_is_long(data: bytes, cuts: list[int]) -> None:
    whole = data + b"\n"
    edges = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    lines = Lines()
    fed = [line for begin, end in pairwise(edges) for line in lines.feed(whole[begin:end])]
    assert fed == split(whole)
    assert all(len(line) <= 4 * CAP + 40 for line in fed)
    assert not any(char < " " or "\x7f" <= char < "\xa0" for line in fed for char in line)


def test_what_does_something_is_written_out_and_the_rest_stays() -> None:
    assert harmless("a\tb\x1b[2J\x00\u202ec é") == "a\tb\\x1b[2J\\x00\\u202ec é"
    assert split(b"50%\r100%\r\ndone") == ["50%", "100%", "done"]
    (line,) = split(LONG)
    assert line == "x" * CAP + f" … {len(LONG) - CAP} bytes more"
