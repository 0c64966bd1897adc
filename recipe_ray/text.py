"""When two texts are the same: one answer for facts and questions, whichever door they come in by.

Stored text stays as it was given, its white space collapsed, and the LLM reads what the user wrote. This form is for
identity and for what the encoder reads.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

MAX_MARKS = 30
_SHORT_CHARS = 2048

# C0, DEL and C1, less those that are white space between words: tab, line ends, NEL.
_CONTROL_CHARS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f"
_CONTROL = re.compile(f"[{_CONTROL_CHARS}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Zero-width space, word joiner, byte order mark, soft hyphen, and the marks of direction. Joiners, variation selectors
# and tag characters stay: words and flags differ by them.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
# Unicode's Default_Ignorable_Code_Point, marks of annotation, and a Braille pattern without dots; beyond \uffff as they
# are, since not every dialect of expressions can say them otherwise.
_UNSEEN = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
VISIBLE = rf"[^\s{_CONTROL_CHARS}{_UNSEEN}]"
"""Matches a visible character, as an expression of Python's and of JSON Schema's dialect."""

_VISIBLE = re.compile(VISIBLE)


def canonical(text: str) -> str:
    """The form that is equal for texts that say the same; empty where nothing is to be seen.

    NFC (Unicode Standard Annex 15), without invisible characters; a run of white space or of control characters is one
    blank, and there is none at the ends.
    """
    if text.isascii() and is_plain(text):
        return text
    if not has_visible(text):
        return ""
    kept = _INVISIBLE.sub("", _CONTROL.sub(" ", text))
    return " ".join(normalized(kept, "NFC").split())


def normalized(text: str, form: Literal["NFC", "NFD"]) -> str:
    """The composed or decomposed form of a text, in time that grows with its length.

    Marks on one letter are sorted, which takes the square of their number: of a long text, each MAX_MARKS of them are
    put in order by themselves, more than any language has (Unicode Standard Annex 15, section 13).
    """
    if len(text) <= _SHORT_CHARS:
        return unicodedata.normalize(form, text)
    return "".join(unicodedata.normalize(form, part) for part in _parts(text))


def _parts(text: str) -> Iterator[str]:
    """A text in parts in which no more than MAX_MARKS marks follow each other."""
    start = num_marks = 0
    for place, char in enumerate(text):
        num_marks = num_marks + 1 if unicodedata.combining(char) else 0
        if num_marks > MAX_MARKS:
            yield text[start:place]
            start, num_marks = place, 1
    yield text[start:]


def collapsed(text: str) -> str:
    """The form in which texts are stored: a run of white space is one blank, and there is none at the ends."""
    return text if is_plain(text) else " ".join(text.split())


def is_plain(text: str) -> bool:
    """Whether a text is printable throughout, and its white space single blanks between words: most are."""
    # Of white space, printable text holds the blank alone.
    return text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " "


def has_control(text: str) -> bool:
    """Whether a text holds a control character that is no white space."""
    return _CONTROL.search(text) is not None


def has_half_pair(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which JSON can say and no encoding can."""
    return _SURROGATE.search(text) is not None


def has_visible(text: str) -> bool:
    """Whether there is anything to be seen of a text."""
    return _VISIBLE.search(text) is not None
