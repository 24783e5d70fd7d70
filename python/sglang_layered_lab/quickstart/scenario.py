"""What the quickstart sends and which flags each server gets. Pure: knows no process, clock or socket."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sglang_layered.errors import QuickstartError

MODEL_NAME = "quickstart"  # the name requests use, whatever the model's path

# Flags that differ between the modes; every other flag is the same in all three.
MODE_FLAGS: dict[str, tuple[str, ...]] = {
    "whole": ("--chunked-prefill-size", "4096"),
    "mixed": ("--chunked-prefill-size", "256", "--enable-mixed-chunk"),
    "layered": ("--chunked-prefill-size", "4096", "--prefill-mode", "layered", "--layered-num-groups", "5"),
}

MODE_TITLES = {
    "whole": "whole prompt first (SGLang's default)",
    "mixed": "mixed chunks of 256 tokens",
    "layered": "layered prefill, 5 layer groups",
}

# Tokens of the prompts. With half of them a CPU without bfloat16 plays less than half as long (docs/log.md).
SIZES: dict[str, dict[str, int]] = {
    "full": {"running_prompt_tokens": 1280, "long_prompt_tokens": 2048},
    "half": {"running_prompt_tokens": 640, "long_prompt_tokens": 1024},
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """Four conversations are running when one long prompt arrives."""

    repetitions: int = 3
    num_running: int = 4
    running_prompt_tokens: int = 1280
    running_max_tokens: int = 192  # never reached: the streams are ended after `tokens_after`
    tokens_before: int = 8  # each running stream has this many before the long prompt is sent
    tokens_after: int = 10  # and gets this many more after the long prompt's first token
    long_prompt_tokens: int = 2048
    long_max_tokens: int = 8
    max_total_tokens: int = 8192  # KV pool of the server: enough for all of the above, and bounded
    seed: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if name != "dtype" and getattr(self, name) < (0 if name == "seed" else 1):
                raise QuickstartError(f"{name} must be positive, not {getattr(self, name)}")
        needed_tokens = self.num_running * (self.running_prompt_tokens + self.running_max_tokens)
        needed_tokens += self.long_prompt_tokens + self.long_max_tokens
        if needed_tokens > self.max_total_tokens:
            raise QuickstartError(
                f"a KV pool of {self.max_total_tokens} tokens is too small for {needed_tokens}"
            )

    def server_flags(self, mode: str) -> list[str]:
        """List the server's flags for one mode."""
        if mode not in MODE_FLAGS:
            raise QuickstartError(f"no mode {mode!r}; there are {', '.join(MODE_FLAGS)}")
        common = {
            "--served-model-name": MODEL_NAME,
            "--dtype": self.dtype,
            "--max-total-tokens": str(self.max_total_tokens),
            "--max-running-requests": "16",
            "--stream-interval": "1",
            "--random-seed": str(self.seed),
        }
        return [*(word for flag in common.items() for word in flag), *MODE_FLAGS[mode]]

    def running_prompts(self, repetition: int, vocab_size: int) -> list[list[int]]:
        """Token ids of the running conversations' prompts; the same in every mode."""
        return [
            self._prompt(self.running_prompt_tokens, f"{repetition}/running/{stream}", vocab_size)
            for stream in range(self.num_running)
        ]

    def long_prompt(self, repetition: int, vocab_size: int) -> list[int]:
        """Token ids of the long prompt; distinct per repetition, so the prefix cache never helps."""
        return self._prompt(self.long_prompt_tokens, f"{repetition}/long", vocab_size)

    def _prompt(self, num_tokens: int, name: str, vocab_size: int) -> list[int]:
        # Both ends of the vocabulary are left out: that is where tokenizers keep their special tokens.
        low, high = vocab_size // 8, vocab_size * 7 // 8
        source = random.Random(f"{self.seed}/{name}")
        return [source.randrange(low, high) for _ in range(num_tokens)]
