from collections import Counter

from rlpref.data.sentiment import openings


def stems(lines, words):
    return Counter(" ".join(line.lower().split()[:words]) for line in lines)


def test_there_are_enough_openings_and_no_two_alike():
    lines = openings()
    assert len(lines) >= 440
    assert len({line.lower() for line in lines}) == len(lines)


def test_openings_are_single_spaced_unfinished_sentences_of_5_to_14_words():
    for line in openings():
        assert line == " ".join(line.split())
        assert 5 <= len(line.split()) <= 14, line
        assert line[-1].isalpha() or line[-1] == ",", line
        assert line[0].isupper(), line


def test_openings_do_not_share_their_stems():
    lines = openings()
    assert max(stems(lines, 3).values()) <= 5
    assert sum(n - 1 for n in stems(lines, 5).values()) <= 3
    assert max(stems([" ".join(line.split()[::-1]) for line in lines], 3).values()) <= 12


def test_openings_leave_the_sentiment_open():
    """No opening may hold a word of clear praise or blame, else the answer's label would be decided."""
    loaded = {
        "good",
        "great",
        "bad",
        "worst",
        "excellent",
        "terrible",
        "awful",
        "wonderful",
        "boring",
        "poor",
    }
    for line in openings():
        assert not loaded & set(line.lower().replace(",", "").split()), line
