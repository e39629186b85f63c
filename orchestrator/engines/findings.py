"""What a doctor says."""

from __future__ import annotations

from typing import Literal

from engine_launchers.value import Value


class Finding(Value):
    """One thing that was looked at. `wrong` needs doing something: `remedy` says what."""

    about: str
    level: Literal["ok", "note", "wrong"]
    text: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """For people: the sign, what it is about, what was seen, and what to do."""
        sign = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[self.level]
        cure = f"\n      -> {self.remedy}" if self.remedy else ""
        return f"{sign} {self.about}: {self.text}{cure}"
