"""README.md and docs/models.md list the refusals of the code."""

from __future__ import annotations

import pytest

from refusals_document import REPO, TABLES, written


@pytest.mark.parametrize("document", TABLES)
def test_writing_the_refusals_again_changes_nothing(document: str) -> None:
    assert (REPO / document).read_text() == written(document), "run scripts/refusals-list"


def test_what_works_is_not_listed_as_refused() -> None:
    table = TABLES["README.md"]["refusals"]()
    assert "`--speculative-algorithm`" in table
    assert "--pp-size" not in table
    assert "pipeline" not in table
