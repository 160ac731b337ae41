"""Small tokenizers made in memory, one for each way a tokenizer can treat blanks, BOS and EOS."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlpref.data.context import DataContext

WORDS = [
    "<unk>",
    "<bos>",
    "<eos>",
    "the",
    "film",
    "was",
    "great",
    "bad",
    "dull",
    "very",
    "and",
    "a",
    "b",
    "c",
    "d",
]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_level(words, **special) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", **special)


@pytest.fixture
def words():
    """WordLevel, no BOS, no template; pad is EOS."""
    return word_level(WORDS, pad_token="<eos>")


@pytest.fixture
def words_with_bos():
    """WordLevel that puts <bos> before and <eos> after every text."""
    tokenizer = word_level(WORDS, bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


@pytest.fixture
def chat():
    """WordLevel with a chat template that writes tokens of its own."""
    tokenizer = word_level([*WORDS, "<user>", "<assistant>", "<system>", "<end>"])
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture
def byte_bpe():
    """Byte-level BPE: every byte is a token, blanks are tokens, and 'th' and ' t' merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<eos>", *alphabet, "th", "Ġt"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("t", "h"), ("Ġ", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture
def sentencepiece():
    """A tokenizer that puts a blank before every text, as Llama's."""
    vocab = {token: i for i, token in enumerate(["<unk>", "<eos>", "▁", "a", "b", "▁a"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture
def context(words, tmp_path):
    """A context without model and gold scorer; tests replace what they need."""
    return DataContext(
        tokenizer=words,
        model=None,
        task=None,
        gold=None,
        seed=0,
        test_fraction=0.25,
        max_prompt_length=16,
        max_completion_length=4,
        temperature=1.0,
        device="cpu",
        cache=tmp_path / "cache",
    )
