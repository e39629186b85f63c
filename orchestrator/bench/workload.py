"""What is asked: request number i is the same in every run with the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from orchestrator.bench import prompts
from orchestrator.bench.lengths import Length


@dataclass(frozen=True)
class Workload:
    """Prompts and lengths, by number. Lengths in tokens."""

    seed: int
    prompt: Length
    output: Length
    share: float = 0.0  # of requests that begin with a shared prefix
    prefix_tokens: int | None = None  # None: half of each prompt
    groups: int = 1  # different shared prefixes
    words_per_token: float = 1.0
    salt: str = ""  # other words of the same lengths: what one target cached helps no other

    def request(self, number: int) -> tuple[str, int]:
        """(prompt, tokens to make) of one request; numbers may be negative (warm-up)."""
        draw = random.Random(f"{self.seed}:{number}").random  # noqa: S311  # no secret
        tokens, output = self.prompt.sample(draw), self.output.sample(draw)
        shares, group = draw() < self.share, int(draw() * self.groups)
        shared = prompts.shared_tokens(tokens, self.prefix_tokens) if shares else 0
        prefix = self._words(f"prefix:{group}", shared) if shared else []
        return " ".join([*prefix, *self._words(str(number), tokens - shared)]), output

    def _words(self, name: str, tokens: int) -> list[str]:
        """The same words for the same name, seed and salt."""
        draw = random.Random(f"{self.seed}:{self.salt}:{name}").random  # noqa: S311
        return prompts.words(prompts.word_count(tokens, self.words_per_token), draw)
