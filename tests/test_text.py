import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_ray.text import canonical, collapsed, has_visible

REMOVED = ["\u200b", "\u2060", "\ufeff", "\u00ad", "\u200e", "\u200f", "\u061c", "\u202e", "\u2066", "\u2069"]
WHITE_SPACE = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028"]
CONTROL = ["\x00", "\x07", "\x0b", "\x1b", "\x7f", "\x80", "\x9f"]
UNSEEN = [*REMOVED, "\u200c", "\u200d", "\ufe0f", "\U000e0041", "\u034f", "\u2800", "\u3164", "\u115f"]
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@given(st.lists(words, min_size=1, max_size=6), st.data())
def test_spelling_white_space_and_invisible_characters_make_no_other_text(texts, data):
    text = " ".join(texts)
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    white = data.draw(st.lists(st.sampled_from(WHITE_SPACE), min_size=len(texts), max_size=len(texts)))
    spelled = "".join(gap + unicodedata.normalize(form, one) for gap, one in zip(white, texts, strict=True))
    place = data.draw(st.integers(0, len(spelled)))
    spelled = spelled[:place] + data.draw(st.sampled_from(REMOVED)) + spelled[place:]
    assert canonical(spelled) == canonical(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_form_is_its_own_and_is_stored_as_it_is(text):
    form = canonical(text)
    assert canonical(form) == form == collapsed(form) == unicodedata.normalize("NFC", form)
    assert canonical(collapsed(text)) == form
    assert bool(form) == has_visible(text)


@pytest.mark.parametrize("joiner", ["\u200c", "\u200d", "\ufe0f", "\U000e0067"])
def test_what_words_and_flags_differ_by_stays(joiner):
    assert canonical(f"a{joiner}b") == f"a{joiner}b"


def test_white_space_and_control_characters_are_blanks():
    for character in (*WHITE_SPACE, *CONTROL):
        assert canonical(f"{character}a{character}b{character}") == "a b"


def test_case_is_another_text():
    assert canonical("Rome") != canonical("rome")


@pytest.mark.parametrize("text", ["", *WHITE_SPACE, *CONTROL, *UNSEEN, "".join(UNSEEN)])
def test_a_text_of_which_nothing_is_to_be_seen_is_empty(text):
    assert not has_visible(text)
    assert canonical(text) == ""


@pytest.mark.parametrize("text", ["!", "€", "😀", "שלום", "你", "é", "e\u0301", "\u200bx"])
def test_any_visible_character_makes_a_text(text):
    assert has_visible(text)


def test_a_long_text_takes_time_by_its_length_and_is_normalised_as_a_short_one():
    marks = "a" + "\u0315\u0300" * 200_000  # sorted as one run, some minutes
    assert len(canonical(marks)) == len(marks) - 1  # the first mark that fits is composed
    text = "Per\u00fa Pérou ペルー 페루 " * 400
    assert canonical(unicodedata.normalize("NFD", text)) == text.strip()
