"""The event scan against a slow reading of the same bytes, however they are cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered_lab.bench.client_stream import EventScan

DONE = b"data: [DONE]\n\n"


def event(count: int, *, text: str = "a", finish: object = None, prompt_tokens: int = 7) -> bytes:
    meta = {
        "finish_reason": finish,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": count,
        "cached_tokens": 0,
    }
    ids = list(range(count))
    value = {"text": text, "output_ids": ids, "meta_info": meta}
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def counts_by_parsing(stream: bytes, ends: list[int]) -> list[int]:
    """Oracle: after each read, parse every event that is whole and take the last one's count."""
    counts = []
    for end in ends:
        whole = stream[:end].split(b"\n\n")[:-1]
        parsed = [
            json.loads(each[6:])["meta_info"]["completion_tokens"]
            for each in whole
            if not each.startswith(b"data: [DONE]")
        ]
        counts.append(parsed[-1] if parsed else 0)
    return counts


@given(
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    text=st.sampled_from(
        ["a", "\n\n", '"completion_tokens":99,', '","completion_tokens":5}', "data: [DONE]\n\n", "ß€"]
    ),
    cuts=st.lists(st.floats(0, 1), max_size=30),
)
def test_counts_equal_a_slow_parse_at_any_cut(steps: list[int], text: str, cuts: list[float]) -> None:
    counts = [sum(steps[: index + 1]) for index in range(len(steps))]
    finish = {"type": "length", "length": counts[-1]}
    stream = b"".join(
        event(count, text=text, finish=finish if count == counts[-1] else None) for count in counts
    )
    stream += DONE
    ends = sorted({*(int(cut * len(stream)) for cut in cuts), len(stream)} - {0})
    scan, seen, now = EventScan(), [], 0
    for start, end in zip([0, *ends], ends, strict=False):
        now = scan.feed(stream[start:end]) or now
        seen.append(now)
    assert seen == counts_by_parsing(stream, ends)
    assert scan.fault(counts[-1]) is None
    assert scan.prompt_tokens == 7


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (event(1) + event(2) + DONE, "2 of 3 tokens came"),
        (event(1) + event(3), "without [DONE]"),
        (event(3) + event(2) + event(3) + DONE, None),  # one read: only the last count is seen
        (
            event(1) + b'data: {"error":{"message":"too long","code":400}}\n\n' + DONE,
            "the server says: too long",
        ),
        (event(3, finish={"type": "abort", "message": "no room"}) + DONE, "aborted it: no room"),
        (event(1) + b"data: {oh}\n\n" + DONE, "no JSON"),
        (b"", "0 of 3 tokens came"),
    ],
)
def test_faults_of_a_stream_in_one_read(stream: bytes, fault: str | None) -> None:
    scan = EventScan()
    scan.feed(stream)
    found = scan.fault(3)
    assert (found is None) if fault is None else fault in str(found)


def test_an_error_event_in_a_read_of_its_own_is_found() -> None:
    scan = EventScan()
    for data in (event(3), b'data: {"error":{"message":"gone"}}\n\n', DONE):
        scan.feed(data)
    assert scan.fault(3) == "the server says: gone"


def test_a_count_that_falls_is_a_fault() -> None:
    scan = EventScan()
    for data in (event(2), event(1), event(3), DONE):
        scan.feed(data)
    assert scan.fault(3) == "the server's running token count fell to 1"
