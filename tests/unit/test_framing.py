"""What heads may be, and that their size is bounded however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import HeadTooLarge
from orchestrator.gateway.framing import MAX_FIELDS, MAX_HEAD, HeadSize, check_head


@given(st.lists(st.tuples(st.binary(max_size=900), st.binary(max_size=900)), max_size=130))
def test_a_head_is_refused_exactly_where_it_is_too_much(fields: list[tuple[bytes, bytes]]) -> None:
    size = HeadSize()
    most = sum(len(name) + len(value) + 4 for name, value in fields)
    fits = most <= MAX_HEAD and len(fields) <= MAX_FIELDS
    try:
        for name, value in fields:
            size.field(name, value)
    except HeadTooLarge:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"localhost:8001", b"127.0.0.1:1", b"[::1]:8001", b"[::1]", b"a_b.example:80"],
)
def test_hosts_as_clients_name_them(host: bytes) -> None:
    assert check_head("1.1", b"/", [(b"host", host)]) is None


def test_old_clients_need_no_host() -> None:
    assert check_head("1.0", b"/", []) is None
    assert check_head("1.1", b"/", []) is not None


def test_a_coding_is_chunked_or_none() -> None:
    host = (b"host", b"a")
    assert check_head("1.1", b"/", [host, (b"transfer-encoding", b"Chunked")]) is None
    assert check_head("1.1", b"/", [host, (b"transfer-encoding", b"gzip, chunked")]) is not None
