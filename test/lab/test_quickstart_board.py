"""The board of a running quickstart: three modes beside each other on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from sglang_layered_lab.bench.client_data import Progress
from sglang_layered_lab.quickstart.board import Board

LABELS = {"whole": "the whole prompt", "mixed": "chunks", "layered": "five layer groups"}


def progress(now_s: float, prompt: int, *running: int) -> Progress:
    return Progress(now_s, 1, 1, 1, 0, 0, prompt, running)


WHOLE = [progress(0.25 * (index + 1), int(index > 4), *[8 + max(0, index - 4)] * 2) for index in range(8)]


def board_on(*, is_terminal: bool, width: int = 90) -> tuple[Board, StringIO]:
    out = StringIO()
    console = Console(
        file=out, force_terminal=is_terminal, width=width, height=30, _environ={"TERM": "xterm"}
    )
    board = Board(console, LABELS, num_streams=2)
    if board._live:
        board._live.auto_refresh = False  # the test draws
    return board, out


def drawn(board: Board, width: int = 90) -> str:
    out = StringIO()
    Console(file=out, width=width).print(board)
    return out.getvalue()


def test_a_pause_is_seen_while_it_lasts_and_the_others_are_played_beside() -> None:
    board, _ = board_on(is_terminal=True)
    with board:
        with board.running("whole") as tell:
            assert tell
            assert "the conversations begin" in drawn(board) and drawn(board).count("not yet") == 2
            for each in WHOLE[:5]:
                tell(each)
            text = drawn(board)
            assert "prompt waits 1.2 s" in text and "no token for 1.0 s" in text and "1 ····" in text
            for each in WHOLE[5:]:
                tell(each)
            assert "tokens are coming" in drawn(board) and "1 ····▪▪▪" in drawn(board)
        board.measured("whole", 1.42, 1.3)
        assert "TTFT 1.42 s, gap 1300 ms" in drawn(board) and "ended after 2.0 s" in drawn(board)
        with board.running("mixed") as tell:
            assert tell and "ended after 2.0 s" in drawn(board)
            tell(progress(0.5, 0, 8, 9))
            text = drawn(board)
            assert "prompt waits 0.5 s" in text and text.count("prompt waits") == 2  # whole plays again
            assert text.count("not yet") == 1


@pytest.mark.parametrize("width", [72, 80, 200])
def test_every_line_fits(width: int) -> None:
    board, _ = board_on(is_terminal=True, width=width)
    with board, board.running("layered") as tell:
        assert tell
        for index in range(100):
            tell(progress(0.25 * index, 0, index, index // 2))
        lines = drawn(board, width).splitlines()
    assert max(map(len, lines)) <= width and len(lines) <= 12


@pytest.mark.parametrize(("is_terminal", "width"), [(False, 90), (True, 60)])
def test_without_a_terminal_or_room_there_is_a_line_a_phase(is_terminal: bool, width: int) -> None:
    board, out = board_on(is_terminal=is_terminal, width=width)
    with board, board.phase("whole: repetition 1 of 3"), board.running("whole") as tell:
        assert tell is None
    [line] = out.getvalue().splitlines()
    assert re.match(r"whole: repetition 1 of 3: \d+\.\d s", line)


def test_lines_stay_above_the_board_and_it_is_left_as_it_ended() -> None:
    board, out = board_on(is_terminal=True)
    with board:
        with board.phase("the model"):
            pass
        with board.running("whole") as tell:
            assert tell
            for each in WHOLE:
                tell(each)
    text = out.getvalue()
    assert re.search(r"the model: \d+\.\d s", text) and "ended after 2.0 s" in text.rpartition("the model")[2]


def test_letters_serve_where_there_is_no_unicode() -> None:
    board, _ = board_on(is_terminal=True)
    with board, board.running("whole") as tell:
        assert tell
        for each in WHOLE:
            tell(each)
        out = StringIO()
        console = Console(file=out, width=90)
        options = console.options.copy()
        options.encoding = "ascii"
        lines = console.render_lines(board, options)
    text = "\n".join("".join(part.text for part in line) for line in lines)
    assert "1 ....ooo" in text and text.isascii()
