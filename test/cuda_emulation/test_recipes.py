"""The launch commands that people copy: accepted or refused with true reasons, and the document says so."""

from __future__ import annotations

from typing import Any

import pytest

from moved_kernels import IS_0_5_23
from recipes import DOCUMENT, asked, recipes, written
from workers import Workers


@pytest.fixture(scope="module")
def answers(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return asked(workers, tmp_path_factory.mktemp("recipes"))


def test_there_are_as_many_as_the_cookbook_has_pages() -> None:
    assert len(recipes()) == 17


def test_stock_resolves_every_recipe(answers: list[dict[str, Any]]) -> None:
    """Else a recipe would be refused for a mistake in its configuration here."""
    assert {answer["model"]: answer["stock"] for answer in answers if answer["stock"]} == {}


def test_a_server_refuses_what_the_table_has_reasons_for(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert bool(answer["told"]) == bool(answer["reasons"]), answer


@pytest.mark.skipif(IS_0_5_23, reason="the document has what SGLang 0.5.17, the default, says to each")
def test_the_document_has_the_table(answers: list[dict[str, Any]]) -> None:
    assert DOCUMENT.read_text() == written(answers), "run scripts/recipes-list"


def test_what_layered_mode_was_made_for_is_accepted(answers: list[dict[str, Any]]) -> None:
    by_model = {answer["model"]: answer for answer in answers}
    assert by_model["Qwen3-235B-A22B, 30B-A3B"]["reasons"] == []
