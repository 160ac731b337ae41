"""The testbed's words: so that its data, samples and logs are text like any other's."""

from __future__ import annotations

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit


def answer_words(vocab: int) -> list[str]:
    """EOS is token 0; the others are a, b, c, ... (t26, t27, ... after z)."""
    letters = [chr(ord("a") + i) if i < 26 else f"t{i}" for i in range(vocab - 1)]
    return ["<eos>", *letters]


def prompt_word(index: int) -> str:
    return f"<prompt{index}>"


def testbed_tokenizer(vocab: int, prompts: int) -> transformers.PreTrainedTokenizerFast:
    """Words split at spaces: `vocab` answer tokens, then one token per prompt."""
    words = answer_words(vocab) + [prompt_word(x) for x in range(prompts)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=None))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


testbed_tokenizer.__test__ = False
