"""The tables of docs/cluster.md are those that its records make."""

from __future__ import annotations

from cluster_claims import DOCUMENT, END, RECORDS, START, with_claims


def test_making_them_again_changes_nothing() -> None:
    text = DOCUMENT.read_text()
    assert text.count(START) == text.count(END) == 1
    assert with_claims(text, RECORDS) == text, "run scripts/cluster-claims"
