"""experiments/bag_of_words.py against counts by hand."""

import re
import zlib

import pytest

import runs

study = runs.experiment("bag_of_words")
WORD = re.compile(r"\w+")


@pytest.mark.parametrize(("counted", "expected"), [(True, [2, 1, 1, 1]), (False, [1, 1, 1, 1])])
def test_words_and_neighbours_are_counted_or_noted_in_rows_of_length_one(counted, expected):
    matrix = study.bag_of_words(["No, no film", "", "film no"], WORD, counted).toarray()
    columns = [zlib.crc32(gram) % study.BUCKETS for gram in (b"no", b"film", b"no no", b"no film")]
    length = sum(count**2 for count in expected) ** 0.5
    assert matrix[0, columns] == pytest.approx([count / length for count in expected])
    assert (matrix**2).sum(1) == pytest.approx([1, 0, 1])
    assert matrix[2, columns[3]] == 0  # order counts


def test_the_studies_share_it():
    assert all(
        runs.experiment(name).bag_of_words.__module__ == "bag_of_words" for name in ("reward_models", "toxicity")
    )
