"""On a GPU layered mode answers as stock does, for every attention backend, page size and strategy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from same_answers import CASES, MAX_LOGPROB_DIFF, WAYS, Case, answers_of, compare, has_flash_ops

pytestmark = [pytest.mark.gpu, pytest.mark.server]


@pytest.fixture(scope="module")
def stock_answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], list[dict[str, Any]]]:
    """Asked once a case, of a server that has ended when the layered one starts."""

    @cache
    def ask(case: Case) -> list[dict[str, Any]]:
        return answers_of(case, None, tmp_path_factory.mktemp(case.name))[0]

    return ask


@pytest.mark.parametrize("execution", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layered_answers_are_stocks(case: Case, execution: str, tmp_path: Any, stock_answers: Any) -> None:
    if case.backend == "fa3" and not has_flash_ops():
        pytest.skip(reason="fa3 needs sgl_kernel's flash_ops, which are not installed here")
    stock = stock_answers(case)
    layered, num_layered_steps = answers_of(case, execution, tmp_path)
    assert num_layered_steps > 0, "no layered step ran, so nothing was compared"
    seen = compare(stock, layered)
    print(f"{case.name}, {execution}: {seen}")
    assert seen.tokens == 1.0 or not case.is_exact, seen
    assert seen.max_logprob_diff <= MAX_LOGPROB_DIFF, seen
