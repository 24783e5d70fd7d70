"""The oracle of tests with the exact model gives what its definition does, longest prompts included."""

from __future__ import annotations

import pytest

from exact_answers import expected_tokens, token_by_token
from scheduler_machine import BASES


@pytest.mark.parametrize("num_layers", [1, 2, 8])
@pytest.mark.parametrize(("length", "num_outputs"), [(1, 1), (1, 5), (2, 1), (90, 22), (1200, 3)])
def test_all_rows_of_a_prompt_at_once_give_the_tokens_of_one_after_the_other(
    length: int, num_outputs: int, num_layers: int
) -> None:
    for base in BASES:
        asked = base[:length], num_outputs, num_layers
        assert expected_tokens(*asked) == token_by_token(*asked)
