"""Texts as hashed words and pairs of neighbouring words, for linear models."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from scipy.sparse import csr_array

BUCKETS = 2**18


def bag_of_words(texts: Iterable[str], word: re.Pattern, counted: bool) -> csr_array:
    """[texts, BUCKETS] of what `word` finds in the text in small letters and of its neighbours in pairs, how often each
    occurs (counted) or whether; each row of length 1 (where two grams share a bucket and none is counted,
    a little longer), that of a text without words 0."""
    places, values, starts = [], [], [0]
    for text in texts:
        words = word.findall(text.lower())
        grams = [*words, *map(" ".join, pairwise(words))]
        if not counted:
            grams = sorted(set(grams))
        found = Counter(zlib.crc32(gram.encode()) % BUCKETS for gram in grams)
        size = (sum(count**2 for count in found.values()) if counted else len(grams)) ** 0.5
        places += found
        values += [count / size for count in found.values()]
        starts.append(len(places))
    return csr_array((values, places, starts), shape=(len(starts) - 1, BUCKETS))
