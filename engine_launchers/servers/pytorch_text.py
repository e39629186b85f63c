"""From tokens to text that may be sent: whole characters, and never half a stop string. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
_BROKEN = "\ufffd"
_CONTEXT = 6  # tokens of the past that tell a tokenizer how the next one is written
_WINDOW = 24  # tokens after which the decoded past is shortened
_PATIENCE = 12  # tokens without a whole character: the bytes are broken, not late


class Detokenizer:
    """Text of a growing list of tokens, piece by piece.

    A tokenizer writes a token differently at the start of a text than after another one, and a
    character may take several tokens. So the last tokens are decoded together with the new ones,
    and what is new is the difference; text that ends within a character waits for its end.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-_CONTEXT:])
        self._said = self._whole(decode(self._tokens)) if self._tokens else ""
        self._late = 0

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete."""
        self._tokens += tokens
        self._late += len(tokens)
        text = self._decode(self._tokens)
        whole = text if self._late > _PATIENCE else self._whole(text)
        if len(whole) <= len(self._said):
            return ""
        new = whole[len(self._said) :]
        self._said, self._late = whole, 0
        if whole == text and len(self._tokens) > _WINDOW:
            self._tokens = self._tokens[-_CONTEXT:]
            self._said = self._decode(self._tokens)  # may begin within a character; it stays so
        return new

    @staticmethod
    def _whole(text: str) -> str:
        """Without a character whose last bytes have not come."""
        return text.rstrip(_BROKEN)


class StopScanner:
    """Passes text on until a stop string comes; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be sent now; nothing once `stopped`, which is set where a stop string is found.

        Of several stop strings the one that begins first counts, however the text was cut.
        """
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        first = min(found, default=-1)
        open_at = self._open_at()
        if first >= 0 and first <= open_at:
            self.stopped = True
            out, self._held = self._held[:first], ""
            return out
        out, self._held = self._held[:open_at], self._held[open_at:]
        return out

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        out = "" if self.stopped else self._held
        for stop in self._stops:
            if (at := out.find(stop)) >= 0:
                self.stopped = True
                out = out[:at]
        self._held = ""
        return out

    def _open_at(self) -> int:
        """Where the longest end of the text that begins a stop string starts; its length if none.

        A stop string that is there in full is not open.
        """
        length = len(self._held)
        longest = max((len(stop) for stop in self._stops), default=0)
        for at in range(max(0, length - longest + 1), length):
            tail = self._held[at:]
            if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._stops):
                return at
        return length
