"""How many examples a property is tried on: a quarter of them in the suite, all in a long run.

make properties SHARE=1
"""

from __future__ import annotations

import os

SHARE = float(os.environ.get("EXAMPLES_SHARE", "0.25"))


def examples(count: int) -> int:
    """As many of `count` as this run is to try."""
    return max(1, int(count * SHARE))
