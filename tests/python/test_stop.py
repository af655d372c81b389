"""Stop strings: the shown text never depends on how the text was cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmule._stop import StopMatcher


def shown(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = "".join(matcher.feed(piece) for piece in pieces)
    return text + matcher.flush(), matcher.stopped


def test_stop_across_pieces() -> None:
    assert shown(["Hello wo", "rl", "d and", " more"], ["world"]) == ("Hello ", "world")


def test_partial_match_is_held_then_released() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.feed("a<en") == "a"
    assert matcher.feed("x") == "<enx"


def test_overlapping_start_is_not_lost() -> None:
    assert shown(["aa", "ab"], ["aab"]) == ("a", "aab")


def test_longest_wins_at_one_place_and_earliest_overall() -> None:
    assert shown(["xabcd"], ["ab", "abc"]) == ("x", "abc")
    assert shown(["xbca"], ["a", "bc"]) == ("x", "bc")


def test_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher([""])


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.text("ab", min_size=1, max_size=4))
def test_pieces_do_not_matter(pieces: list[str], stop: str) -> None:
    text = "".join(pieces)
    at = text.find(stop)
    assert shown(pieces, [stop]) == (text if at < 0 else text[:at], None if at < 0 else stop)
