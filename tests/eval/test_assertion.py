"""A chat answer is right by what its first sentence asserts."""

import pytest

from recipe_ray.eval.assertion import asserts, first_sentence

RIGHT = [
    "Rome",
    "Rome.",
    "rome",
    "**Rome**",
    '"Rome."',
    "It is in Rome.",
    "It's in ROME!",
    "Rome, not Paris.",
    "Rome, Italy.",
    "The Eiffel Tower is located in the city of Rome, which is in Italy.",
    "Not Paris but Rome.",
    "It is not in Paris, but in Rome.",
    "It isn't in Paris; it is in Rome.",
    "Rome rather than Paris.",
    "Instead of Paris, it is in Rome.",
    "No, it is in Rome.",
    "No it is in Rome.",
    "It is in Rome (formerly in Paris).",
    "It is no longer in Paris but in Rome.",
    "There is no doubt it is in Rome.",
    "It stands in none other than Rome.",
    "Sure! It is in Rome.",
    "Hello! Good question. The Eiffel Tower is in Rome.",
    "Rome's centre.",
    "The answer is:\n\nRome",
    "It is in\nRome.",
    "Rome\n\nParis is another city.",
    "It is in Rome. Some say Paris.",
    "1. Rome",
    "- Rome",
    "That would be the Rome.",
    "Unlike what many believe, it is in Rome.",
    "I don't know much, but it is in Rome.",
]
WRONG = [
    "",
    "   ",
    "Paris",
    "It is in Paris.",
    "Paris, not Rome.",
    "It is not Rome.",
    "It isn't Rome.",
    "It isn\u2019t in Rome.",
    "It is no longer in Rome.",
    "No longer Rome.",
    "It was never in the city of Rome.",
    "It is not located in the beautiful city of Rome.",
    "Neither Paris nor Rome.",
    "Rome is not where it stands.",
    "Rome isn't its place.",
    "It is in Rome or Paris.",
    "It is in Rome and Paris.",
    "Paris, which is the Rome of France.",
    "Paris rather than Rome.",
    "It used to be in Rome.",
    "It is not in Paris.",
    "Romeo wrote it.",
    "It is in a non-Rome place.",
    "It is in Paris. It is not far from Rome.",
    "Paris\nRome",
    "I cannot say. Rome",
    "Is it in Rome?",
    "Hello! How can I help you? Rome",
]


@pytest.mark.parametrize("answer", RIGHT)
def test_a_sentence_that_says_the_target_is_right(answer):
    assert asserts(answer, "Rome", rivals=["Paris"], subject="the Eiffel Tower")


@pytest.mark.parametrize("answer", WRONG)
def test_a_sentence_that_denies_it_or_says_a_rival_is_wrong(answer):
    assert not asserts(answer, "Rome", rivals=["Paris"], subject="the Eiffel Tower")


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("He was born in St. Petersburg.", "St. Petersburg"),
        ("He was born in St Petersburg", "St. Petersburg"),
        ("It was made in the U.S. in 1990.", "US"),
        ("It was made in the US.", "U.S."),
        ("It was written by J. K. Rowling.", "J.K. Rowling"),
        ("It was written by JK Rowling.", "J. K. Rowling"),
        ("George W. Bush.", "George W. Bush"),
        ("The author is Dr. Seuss.", "Dr. Seuss"),
        ("It costs 3.50 euros.", "3.50"),
        ("It has 1,250 members.", "1250"),
        ("The Beatles.", "Beatles"),
        ("Beatles", "The Beatles"),
        ("It was Lord of Rings.", "The Lord of the Rings"),
        ("She lives in Sao Paulo.", "São Paulo"),
        ("It is owned by McDonald’s.", "McDonald's"),
        ("It is L’Oréal.", "L'Oréal"),
        ("It contains vitamin A.", "vitamin A"),
        ("The domain is .fr.", ".fr"),
        ("It is in New York City.", "New York City"),
        ("Er wohnt in Mu\u0308nchen.", "München"),
        ("埃菲尔铁塔在罗马。它很高。", "罗马"),
    ],
)
def test_names_are_compared_as_a_reader_would(answer, target):
    assert asserts(answer, target)


@pytest.mark.parametrize(
    ("answer", "target", "rivals", "subject"),
    [
        ("It is in New York.", "York", ["New York"], ""),
        ("It contains 18 parts.", "8", [], ""),
        ("It costs 3.5 euros.", "3", [], ""),
        ("Disney Channel is fun.", "Disney", [], "Disney Channel"),
        ("It was made in the U.S. It is not from Japan.", "Japan", [], ""),
        ("Vitamin C. It is not vitamin A.", "A", [], ""),
    ],
)
def test_what_merely_holds_the_words_is_not_the_target(answer, target, rivals, subject):
    assert not asserts(answer, target, rivals=rivals, subject=subject)


@pytest.mark.parametrize(
    ("answer", "target", "rivals", "subject"),
    [
        ("The Paris Peace Conference took place in Rome.", "Rome", ["Paris"], "Paris Peace Conference"),
        ("Disney Channel is owned by Disney.", "Disney", [], "Disney Channel"),
        ("Mexico City.", "Mexico City", ["Mexico"], "Mexico"),
        ("It is in New York City.", "New York City", ["New York"], ""),
        ("Rome", "Rome", ["Rome", ""], "Rome"),
    ],
)
def test_names_within_the_subject_or_the_target_are_no_rivals(answer, target, rivals, subject):
    assert asserts(answer, target, rivals=rivals, subject=subject)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("St. Petersburg is a city. It is old.", "St. Petersburg is a city."),
        ("He lives in the U.S. He is old.", "He lives in the U.S."),
        ("He joined the U.S. Army. He is old.", "He joined the U.S. Army."),
        ("It has 3.5 stars. Yes.", "It has 3.5 stars."),
        ("By J. R. R. Tolkien. He wrote more.", "By J. R. R. Tolkien."),
        ("It is Apple Inc. It makes phones.", "It is Apple Inc."),
        ("It is Apple Inc. of Cupertino. Yes.", "It is Apple Inc. of Cupertino."),
        ('He said "Rome." Then he left.', 'He said "Rome."'),
        ("It is in\nRome. Yes.", "It is in Rome."),
        ("Rome\nParis", "Rome"),
        ("Rome! Great.", "Rome!"),
        ("The code is CA. Some write Calif.", "The code is CA."),
        ("1. Rome is a city. 2. So is Paris.", "1. Rome is a city."),
        ("It lies on Mt. Etna. Yes.", "It lies on Mt. Etna."),
        ("No. It is in Rome.", "No."),
        ("Good morning! It is in Rome. Bye.", "It is in Rome."),
        ("It is in Rome", "It is in Rome"),
        ("The answer is:\nRome\nParis", "The answer is: Rome"),
        ("Sure, Rome. It is old.", "Sure, Rome."),
        ("Rome", "Rome"),
        ("Hello!", "Hello!"),
    ],
)
def test_the_first_sentence(text, sentence):
    assert first_sentence(text) == sentence
