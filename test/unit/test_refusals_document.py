"""The documents list the refusals and the flags of the code."""

from __future__ import annotations

import re

import pytest

from refusals_document import REPO, TABLES, written
from sglang_layered.settings import KEYS


@pytest.mark.parametrize("document", TABLES)
def test_writing_the_tables_again_changes_nothing(document: str) -> None:
    assert (REPO / document).read_text() == written(document), "run scripts/refusals-list"


def test_what_works_is_not_listed_as_refused() -> None:
    table = TABLES["docs/refused.md"]["refusals"]()
    assert "`--speculative-algorithm`" in table
    assert "--pp-size" not in table
    assert "pipeline" not in table


def test_the_settings_of_a_running_server_are_listed() -> None:
    section = (REPO / "docs/flags.md").read_text().partition("## Changed while the server runs")[2]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(KEYS)
