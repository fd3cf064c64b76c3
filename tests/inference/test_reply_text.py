from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_lora.inference.reply_text import ReplyText


def filtered(text, others=("Bob", "Cy Lee", "C++ (x)"), cuts=(), own="Ada"):
    """The reply, from a text that arrives cut at these places."""
    reply = ReplyText(own, others)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]
    return "".join([*(reply.feed(piece) for piece in pieces), reply.close()])


@pytest.mark.parametrize(
    ("generated", "reply"),
    [
        ("hi there", "hi there"),
        ("  hi\nthere \n\n", "hi\nthere"),
        ("same\nBob: hey", "same"),
        ("same\n  bob: hey", "same"),
        ("same\nBob:\nhey", "same"),
        ("same\nBob:", "same"),
        ("Bob: hey", ""),
        ("one\n\nCy Lee: two\nthree", "one"),
        ("ask Bob: he knows", "ask Bob: he knows"),
        ("Bobby: no", "Bobby: no"),
        ("Bob:)", "Bob:)"),
        ("Bob", "Bob"),
        ("Dee: nobody here", "Dee: nobody here"),
        ("Ada: hi\nAda: there", "hi\nthere"),
        ("Ada: Bob: hi", ""),
        ("ada:  hi there", "hi there"),
        ("Name:: x", "Name:: x"),
        ("hi\nC++ (x): y", "hi"),
        ("note: this stays", "note: this stays"),
        ("a\nb\na\nb", "a\nb\na\nb"),
        ("lol\nlol\nlol\nlol", "lol\nlol"),
        ("lol\nlol\n\nlol\nyes", "lol\nlol"),
        ("lol\nlol\nlolly", "lol\nlol\nlolly"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_reply_is_the_voices_own_words(generated, reply):
    assert filtered(generated) == reply
    assert filtered(generated, cuts=range(len(generated))) == reply


PARTS = ["Bob", "Bob:", ":", " ", "\n", "hi", "Ada: ", "Cy Lee: ", "Cy", "lol\n", "🙂"]


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.sets(st.integers(0, 60)))
def test_the_reply_does_not_depend_on_how_the_text_arrives(parts, cuts):
    text = "".join(parts)
    assert filtered(text, cuts=cuts) == filtered(text)


def test_only_what_may_be_a_name_is_held_back():
    reply = ReplyText("Ada", ["Bob"])
    assert reply.feed("B") == ""
    assert reply.feed("o") == ""
    assert reply.feed("a") == "Boa"
    assert reply.feed(" constrictor ") == " constrictor"
    assert reply.feed("B") == " B"
    assert reply.feed("\nBob") == ""
    assert reply.feed(":") == ""
    assert not reply.ended
    assert reply.feed(" ") == ""
    assert reply.ended
    assert reply.feed("more") == reply.close() == ""


def test_a_link_of_somebody_called_http_is_a_link():
    assert filtered("http://x.org", others=["http"]) == "http://x.org"


@pytest.mark.parametrize("phrase", ["ha ", "I do not know what to say. ", "a"])
def test_a_phrase_in_circles_ends_the_reply(phrase):
    reply = ReplyText("Ada", [])
    shown = ""
    for _ in range(1000):
        shown += reply.feed(phrase)
        if reply.ended:
            break
    assert 80 <= len(shown) <= 4 * 80


def test_some_laughter_is_no_circle():
    text = "ha" * 30 + " very very very funny"
    assert filtered(text) == text


def test_a_long_varied_text_passes():
    text = " ".join(str(number * number) for number in range(300))
    assert filtered(text, cuts=range(0, len(text), 3)) == text
