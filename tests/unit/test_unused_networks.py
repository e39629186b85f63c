"""Which networks a Docker Engine beside another may have: none that leads somewhere already."""

from __future__ import annotations

import pytest

from tests.containers import unused

_ROUTES = """\
Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0
docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0
vpn 0001640A 00000000 0001 0 0 0 00FFFFFF 0 0 0
"""


@pytest.mark.parametrize(
    ("network", "free"),
    [
        ("192.168.3.0/24", True),
        ("172.17.5.0/24", False),
        ("10.100.1.0/24", False),
        ("10.100.2.0/24", True),
        ("10.0.0.0/8", False),
    ],
)
def test_a_network_that_is_in_use_is_left_out(network: str, free: bool) -> None:
    assert [str(each) for each in unused([network], _ROUTES)] == [network] * free
