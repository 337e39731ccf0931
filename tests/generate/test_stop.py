"""Stop texts: cut at the same place however the tokens divide the text, and never shown in part."""

from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.generate.stop import Text
from tests.generate.tiny import ByteStream


class Pieces:
    """A decoder whose tokens are places in a list of texts, and whose end is one more text."""

    def __init__(self, pieces: list[str], end: str = "") -> None:
        self.pieces, self.end = pieces, end

    def push(self, token: int) -> str:
        return self.pieces[token]

    def finish(self) -> str:
        return self.end


def shown(pieces: list[str], stops: list[str], end: str = "") -> tuple[list[str], bool]:
    """What is shown after each piece, up to the stop text or the end."""
    text, out = Text(Pieces(pieces, end), stops), []
    for i in range(len(pieces)):
        out.append(text.push(i))
        if text.stopped:
            break
    return [*out, text.finish()], text.stopped


def cut(text: str, stops: list[str]) -> str | None:
    """The plain rule: read on until some stop text ends here, and take away the longest that does."""
    for end in range(1, len(text) + 1):
        ending = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(ending)]
    return None


PIECES = st.lists(st.text("ab", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS, st.text("ab", max_size=3))
def test_it_does_not_matter_how_the_text_is_divided(pieces: list[str], stops: list[str], end: str) -> None:
    whole = "".join(pieces) + end
    expected = cut(whole, stops)
    out, stopped = shown(pieces, stops, end)
    assert stopped == (expected is not None)
    assert "".join(out) == (whole if expected is None else expected)


@given(PIECES, STOPS)
def test_only_what_may_become_a_stop_text_is_held_back(pieces: list[str], stops: list[str]) -> None:
    text, so_far, out = Text(Pieces(pieces), stops), "", ""
    for i, piece in enumerate(pieces):
        so_far, out = so_far + piece, out + text.push(i)
        if text.stopped:
            break
        held = so_far[len(out) :]
        assert so_far.startswith(out)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_examples() -> None:
    assert shown(["a", "\n", "\nb"], ["\n\n"]) == (["a", "", "", ""], True)
    assert shown(["a", "\n", "b"], ["\n\n"]) == (["a", "", "\nb", ""], False)
    assert shown(["Us", "er", "s"], ["User:"]) == (["", "", "Users", ""], False)
    assert shown(["x", "Us"], ["User:"]) == (["x", "", "Us"], False)
    assert shown(["héU", "ser: no"], ["User:"]) == (["hé", "", ""], True)


def test_a_stop_text_across_the_bytes_of_a_character() -> None:
    text = Text(ByteStream(), ["é!"])
    assert [text.push(b) for b in "aé!".encode()] == ["a", "", "", ""]
    assert text.stopped
    assert text.finish() == ""


def test_the_end_shows_what_was_incomplete() -> None:
    text = Text(ByteStream(), [])
    assert [text.push(b) for b in "é".encode()[:1]] == [""]
    assert text.finish() == "\ufffd"


def test_without_a_decoder_the_text_is_empty() -> None:
    text = Text(None, [])
    assert (text.push(3), text.finish(), text.stopped) == ("", "", False)


def test_a_token_without_text_shows_nothing_and_the_answer_goes_on() -> None:
    class Padded:
        def push(self, token: int) -> str:
            if token > 9:
                raise InputError("no token has this id")
            return str(token)

        def finish(self) -> str:
            return ""

    text = Text(Padded(), [])
    assert [text.push(i) for i in (1, 12, 2)] == ["1", "", "2"]
