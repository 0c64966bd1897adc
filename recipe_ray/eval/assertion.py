"""Whether a chat answer says what it should: what its first sentence asserts.

An answer is right where the first sentence names the target as whole words, does not deny it, and asserts no rival.
Upper case, accents, punctuation, articles and a possessive `'s` make no difference. What is named within the subject is
not asserted ("The Paris Peace Conference took place in Rome" says Rome), nor a name that is part of a rival's ("New
York" does not say York). Greetings and words like "Sure!" before the answer are no sentence; a question
asserts nothing.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recipe_ray.text import canonical

# A full stop behind these ends no sentence.
_ABBREVIATIONS = frozenset(
    [
        "st",
        "ste",
        "mr",
        "mrs",
        "ms",
        "mx",
        "dr",
        "prof",
        "rev",
        "hon",
        "fr",
        "gen",
        "col",
        "lt",
        "maj",
        "capt",
        "cpl",
        "sgt",
        "cmdr",
        "adm",
        "sen",
        "rep",
        "gov",
        "pres",
        "mt",
        "ft",
        "no",
        "nos",
        "vol",
        "vs",
        "approx",
        "ca",
        "cf",
        "eg",
        "ie",
        "al",
        "op",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "mlle",
        "mme",
        "univ",
    ]
)
# Behind these it does where the next word begins a sentence.
_MAY_END = frozenset(
    ["inc", "ltd", "co", "corp", "jr", "sr", "bros", "etc", "dept", "am", "pm", "bc", "ad", "phd", "esq"]
)
_BEGINNINGS = frozenset(
    [
        "it",
        "its",
        "he",
        "his",
        "she",
        "her",
        "they",
        "their",
        "this",
        "that",
        "these",
        "those",
        "there",
        "here",
        "the",
        "a",
        "an",
        "in",
        "on",
        "at",
        "as",
        "if",
        "so",
        "but",
        "and",
        "or",
        "however",
        "we",
        "you",
        "i",
        "my",
        "our",
        "your",
        "for",
        "what",
        "who",
        "where",
        "when",
        "which",
        "how",
        "is",
        "was",
        "are",
        "please",
        "let",
        "not",
        "no",
        "yes",
        "also",
        "since",
        "while",
    ]
)
# Together with signs and figures of speech, all that a line of courtesy consists of.
_COURTESY = frozenset(
    [
        "hi",
        "hello",
        "hey",
        "hiya",
        "greetings",
        "sure",
        "certainly",
        "absolutely",
        "indeed",
        "okay",
        "ok",
        "well",
        "yes",
        "thanks",
        "thank",
        "you",
        "good",
        "day",
        "morning",
        "afternoon",
        "evening",
        "of",
        "course",
        "i'm",
        "i",
        "am",
        "happy",
        "glad",
        "to",
        "help",
        "great",
        "excellent",
        "question",
        "dear",
        "there",
        "my",
        "friend",
        "sir",
        "madam",
        "ah",
        "oh",
        "gladly",
        "welcome",
        "you're",
        "here",
        "is",
        "your",
        "the",
        "answer",
        "nice",
        "interesting",
        "alright",
        "right",
        "very",
        "a",
        "an",
    ]
)
_COURTESY_CORE = frozenset(
    [
        "hi",
        "hello",
        "hey",
        "hiya",
        "greetings",
        "sure",
        "certainly",
        "absolutely",
        "indeed",
        "okay",
        "ok",
        "well",
        "yes",
        "thanks",
        "thank",
        "good",
        "of",
        "happy",
        "glad",
        "great",
        "excellent",
        "ah",
        "oh",
        "gladly",
        "welcome",
        "nice",
        "interesting",
        "alright",
        "dear",
    ]
)
_GOES_ON = frozenset(
    [
        "a",
        "an",
        "the",
        "in",
        "on",
        "at",
        "of",
        "to",
        "from",
        "by",
        "with",
        "for",
        "and",
        "or",
        "as",
        "is",
        "was",
        "are",
        "were",
        "be",
        "been",
        "called",
        "named",
        "known",
        "his",
        "her",
        "its",
        "their",
        "my",
        "your",
        "our",
        "not",
    ]
)
_NEGATORS = frozenset(
    [
        "not",
        "never",
        "neither",
        "nor",
        "cannot",
        "non",
        "without",
        "unlike",
        "except",
        "isnt",
        "wasnt",
        "arent",
        "werent",
        "doesnt",
        "didnt",
        "dont",
        "aint",
        "cant",
        "couldnt",
        "wont",
        "wouldnt",
        "hasnt",
        "havent",
        "hadnt",
        "formerly",
        "previously",
        "no",
    ]
)
_NEGATOR_PHRASES = (("no", "longer"), ("used", "to"), ("rather", "than"), ("instead", "of"), ("other", "than"))
# What a negator says nothing against: "no doubt Rome", "none other than Rome", "not only Rome".
_AFFIRMING_PHRASES = (
    ("no", "doubt"),
    ("without", "doubt"),
    ("without", "question"),
    ("none", "other", "than"),
    ("no", "other", "than"),
    ("not", "only"),
    ("not", "just"),
    ("not", "surprisingly"),
)
_CLAUSE_WORDS = frozenset(["but", "yet", "although", "though", "however", "because", "since", "while", "whereas"])
_AUXILIARIES = frozenset(
    [
        "is",
        "was",
        "are",
        "were",
        "be",
        "does",
        "do",
        "did",
        "has",
        "have",
        "had",
        "can",
        "could",
        "would",
        "will",
        "should",
        "may",
        "might",
    ]
)
_DENIALS = frozenset(
    ["not", "never", "isnt", "wasnt", "arent", "werent", "doesnt", "didnt", "hasnt", "cannot", "cant", "wont"]
)

_INITIALS = re.compile(r"\b([^\W\d_])\.\s?(?=[^\W\d_]\.)")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(
    rf"(?P<number>\d+(?:[.,]\d+)*)|(?P<cjk>[{_CJK}])|(?P<word>[^\W\d_{_CJK}]+(?:'[^\W\d_{_CJK}]+)*)"
    r"|(?P<boundary>[,;:()\u2013\u2014]|\s-+\s)"
)
_TERMINATOR = re.compile(r"[.!?\u3002\uff01\uff1f]+|\n")
_CLOSERS = "\"'*_)]}\u201d\u2019\u00bb"


def asserts(answer: str, target: str, *, rivals: Iterable[str] = (), subject: str = "") -> bool:
    """Whether an answer's first sentence asserts the target and no rival.

    Args:
        answer: what was said.
        target: what should be.
        rivals: other answers, such as what is true without the edit; one equal to the target counts as none.
        subject: whom or what was asked about; names within it are no answers.
    """
    sentence = first_sentence(answer)
    if sentence.rstrip(_CLOSERS + " ").endswith(("?", "\uff1f")):
        return False
    words = _words(sentence)
    wanted = _names(target)
    others = [names for names in map(_names, rivals) if names and names != wanted]
    texts = [word.text for word in words]
    right = _spans(texts, wanted)
    wrong = [span for names in others for span in _spans(texts, names)]
    about = [span for span in _spans(texts, _names(subject)) if not _within(span, right, strictly=False)]
    right = [span for span in right if not _within(span, [*about, *wrong])]
    wrong = [span for span in wrong if not _within(span, [*about, *right])]
    return any(not _denied(words, span) for span in right) and all(_denied(words, span) for span in wrong)


def first_sentence(text: str) -> str:
    """The first sentence that is more than courtesy; the whole text where none ends.

    Full stops of abbreviations, initials, numbers and list items end none. A line's end does, unless the line plainly
    goes on: behind a colon, a comma or a word like "in", or where the next begins in lower case.
    """
    rest = text.strip()
    while True:
        end = _sentence_end(rest)
        sentence, after = rest[:end].strip(), rest[end:].strip()
        if not after or not _is_courtesy(sentence):
            return " ".join(sentence.split())
        rest = after


def _sentence_end(text: str) -> int:
    for mark in _TERMINATOR.finditer(text):
        before, after = text[: mark.start()], text[mark.end() :]
        if not before.strip():
            continue
        if mark.group() == "\n":
            if _line_ends(before, after):
                return mark.end()
            continue
        closed = after.lstrip(_CLOSERS)
        if closed and not closed[0].isspace() and mark.group().isascii():
            continue
        if mark.group() == "." and not _stop_ends(before, closed):
            continue
        return mark.end() + len(after) - len(closed)
    return len(text)


def _line_ends(before: str, after: str) -> bool:
    line = before.rstrip(" *_\n")
    last = re.search(r"[^\W\d_]+$", line)
    if line.endswith((":", ",")) or (last and last.group().casefold() in _GOES_ON):
        return False
    following = after.lstrip()
    return after.startswith("\n") or not following[:1].islower()


def _stop_ends(before: str, after: str) -> bool:
    following = after.split(maxsplit=1)
    begins = bool(following) and re.sub(r"\W", "", following[0].casefold()) in _BEGINNINGS
    last = re.search(r"(?:^|[\s(\"'\u2018\u201c*])([^\s(\"'\u2018\u201c*]*)$", before)
    word = last.group(1) if last else ""
    if not following:
        return True
    if word.isdigit() and not before[: len(before) - len(word)].strip(" \n*#-"):
        return False  # the number of a list's item
    bare = word.replace(".", "").casefold()
    if "." in word and all(len(part) <= 1 for part in word.split(".")):  # U.S, e.g
        return begins and bare not in _ABBREVIATIONS
    if len(word) == 1 and word.isalpha() and word.isupper():
        return begins
    if word.isupper():  # a code: AL, CA
        return True
    if bare in _MAY_END:
        return begins
    # Only a word that is written as the abbreviation is: "Mar. 3" and "in March."
    return bare not in _ABBREVIATIONS or (bare == "no" and not following[0][:1].isdigit())


def _is_courtesy(sentence: str) -> bool:
    said = [word.text for word in _words(sentence) if word.text]
    plain = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", _folded(sentence))
    if not said or not plain:
        return True
    return all(word in _COURTESY for word in plain) and any(word in _COURTESY_CORE for word in plain)


@dataclass(frozen=True, slots=True)
class _Word:
    """A word as it is compared, and the number of the clause that it stands in."""

    text: str
    clause: int


def _folded(text: str) -> str:
    """Without accents and upper case, apostrophes alike."""
    parts = unicodedata.normalize("NFKD", canonical(text).replace("\u2019", "'").replace("\u2018", "'"))
    return "".join(char for char in parts if not unicodedata.combining(char)).casefold()


def _words(text: str) -> list[_Word]:
    """The words of a text without articles."""
    joined = canonical(text)
    joined = _INITIALS.sub(r"\1", joined)
    found: list[tuple[str, str]] = []
    clauses: list[int] = []
    clause = 0
    for match in _TOKEN.finditer(unicodedata.normalize("NFC", joined.replace("\u2019", "'"))):
        if match.lastgroup == "boundary":
            clause += 1
            continue
        raw = match.group()
        folded = _folded(raw).removesuffix("'s")
        clause += folded in _CLAUSE_WORDS
        found.append((raw, folded.replace(",", "") if match.lastgroup == "number" else folded))
        clauses.append(clause)
    return [
        _Word(folded.replace("n't", "nt") if folded.endswith("n't") else folded, number)
        for place, ((raw, folded), number) in enumerate(zip(found, clauses, strict=True))
        if not _is_article(raw, first=place == 0, last=place == len(found) - 1)
    ]


def _is_article(word: str, *, first: bool, last: bool) -> bool:
    if last:  # vitamin A
        return False
    return word.casefold() in ("the", "an") or word == "a" or (word == "A" and first)


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.text for word in _words(text))


def _spans(texts: Sequence[str], name: Sequence[str]) -> list[range]:
    if not name:
        return []
    length = len(name)
    starts = range(len(texts) - length + 1)
    return [range(start, start + length) for start in starts if tuple(texts[start : start + length]) == tuple(name)]


def _within(span: range, others: Iterable[range], *, strictly: bool = True) -> bool:
    """Whether a span lies within a longer one, or one as long."""
    return any(
        other.start <= span.start and span.stop <= other.stop and (len(other) > len(span) or not strictly)
        for other in others
    )


def _denied(words: Sequence[_Word], span: range) -> bool:
    """Whether a negation of the same clause comes before what a span names, or right behind it."""
    clause = words[span.start].clause
    before = [word.text for word in words[: span.start] if word.clause == clause]
    behind = [word.text for word in words[span.stop : span.stop + 2] if word.clause == clause]
    if words[0].clause == clause and before[:1] == ["no"] and before[1:2] != ["longer"]:
        before = before[1:]  # "No it is in Rome"
    return _negates(before) or _denies(behind)


def _negates(texts: Sequence[str]) -> bool:
    place = 0
    while place < len(texts):
        if affirming := next((phrase for phrase in _AFFIRMING_PHRASES if _begins(texts[place:], phrase)), None):
            place += len(affirming)
            continue
        if texts[place] in _NEGATORS or any(_begins(texts[place:], phrase) for phrase in _NEGATOR_PHRASES):
            return True
        place += 1
    return False


def _denies(texts: Sequence[str]) -> bool:
    """What follows a name and denies it: "Rome is not", "Rome isn't"."""
    if not texts:
        return False
    return texts[0] in _DENIALS or (texts[0] in _AUXILIARIES and texts[1:2] in (["not"], ["never"]))


def _begins(texts: Sequence[str], phrase: Sequence[str]) -> bool:
    return tuple(texts[: len(phrase)]) == tuple(phrase)
