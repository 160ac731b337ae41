"""Judges whose verdicts are known: a stub that says what the test tells it, and a random Llama read word by word."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from rlpref.binding import ConfigError
from rlpref.data.requests import make_reader, verdict_sequences
from rlpref.data.tokenise import encode_completion, encode_prompt, pad_sequences
from rlpref.models.reference import Reference
from rlpref.rewards.judge import PairJudge, PointJudge, Verdicts, plain_texts
from rlpref.rewards.rubric import Question

WORDS = ["<eos>", "<unk>", "Human:", "Assistant:", "A", "B", "C", "P", "one", "two", *map(str, range(10))]
PAIR = Question("{prompt} one {first} two {second}", ("A", "B", "C"))
POINT = Question("{prompt} one {answer}", ("A", "B"))
CHAT = "{% for t in messages %}<|im|>{{ t['role'] }}\n{{ t['content'] }}<|end|>\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|im|>assistant\n{% endif %}"


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")


class Stub(nn.Module):
    """Gives A, B and C the log-probs `says(what stands after 'one', what stands after 'two')`, and the rest none."""

    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self, says):
        super().__init__()
        self.says, self.nothing, self.rows = says, nn.Parameter(torch.zeros(1)), 0

    def forward(self, input_ids, logits_to_keep, **_):
        self.rows += len(input_ids)
        logits = torch.full((len(input_ids), logits_to_keep, len(WORDS)), -30.0)
        for row, ids in enumerate(input_ids.tolist()):
            text = [WORDS[i] for i in ids]
            shown = [int(text[text.index(mark) + 1]) if mark in text else None for mark in ("one", "two")]
            logits[row, :, 4:7] = torch.tensor(self.says(*shown)).log()
        return SimpleNamespace(logits=logits)


def pair_judge(tokenizer, says, order_conflict="tie", chunk=3):
    reader = make_reader(Reference(Stub(says), adapter_off=False), tokenizer, chunk)
    return PairJudge(PAIR, reader, partial(plain_texts, tokenizer), order_conflict)


def answers(tokenizer, numbers):
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "P"}])
    return pad_sequences([prompt] * len(numbers), [encode_completion(tokenizer, str(n), True, 5) for n in numbers])


FIRST, SECOND = [1, 5, 3, 9], [2, 4, 8, 0]


def perfect(one, two):
    return (0.8, 0.1, 0.1) if one > two else (0.1, 0.8, 0.1)


def biased(one, two):
    return (0.7, 0.2, 0.1)


def leaning(one, two):
    """Names the answer shown first, and is surer of it where it is the larger number."""
    return (0.8, 0.1, 0.1) if one > two else (0.6, 0.3, 0.1)


@pytest.mark.parametrize("order_conflict", ["tie", "mean"])
def test_a_perfect_judge_names_the_better_answer_in_both_orders(tokenizer, order_conflict):
    judge = pair_judge(tokenizer, perfect, order_conflict)
    found = judge(answers(tokenizer, FIRST), answers(tokenizer, SECOND))
    torch.testing.assert_close(found, torch.tensor([0.15, 0.85, 0.15, 0.85]))
    verdicts = judge.verdicts(["P"] * 4, [*map(str, FIRST)], [*map(str, SECOND)])
    assert not verdicts.flipped.any()
    assert verdicts.named.tolist() == [[-1, 1, -1, 1]] * 2


@pytest.mark.parametrize("order_conflict", ["tie", "mean"])
def test_a_judge_that_looks_at_the_order_alone_has_no_preference(tokenizer, order_conflict):
    judge = pair_judge(tokenizer, biased, order_conflict)
    verdicts = judge.verdicts(["P"] * 4, [*map(str, FIRST)], [*map(str, SECOND)])
    torch.testing.assert_close(verdicts.wins(order_conflict), torch.full((4,), 0.5))
    assert verdicts.flipped.all()
    assert verdicts.first_shown.all()


def test_what_a_leaning_judge_knows_is_in_the_mean_and_not_in_what_it_names(tokenizer):
    pairs = answers(tokenizer, FIRST), answers(tokenizer, SECOND)
    assert pair_judge(tokenizer, leaning, "tie")(*pairs).tolist() == [0.5] * 4
    # shown first .85 or .65 of the word mass: (.85 + 1 - .65) / 2
    torch.testing.assert_close(pair_judge(tokenizer, leaning, "mean")(*pairs), torch.tensor([0.4, 0.6, 0.4, 0.6]))


@pytest.mark.parametrize("order_conflict", ["tie", "mean"])
def test_swapping_the_answers_swaps_the_probability(tokenizer, order_conflict):
    def some(one, two):
        weights = torch.rand(3, generator=torch.Generator().manual_seed(10 * one + two))
        return (weights / weights.sum()).tolist()

    judge = pair_judge(tokenizer, some, order_conflict)
    first, second = answers(tokenizer, range(10)), answers(tokenizer, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    torch.testing.assert_close(judge(first, second), 1 - judge(second, first))


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_change_nothing_and_every_order_and_word_is_one_row(tokenizer, chunk):
    judge = pair_judge(tokenizer, leaning, "mean", chunk)
    found = judge(answers(tokenizer, FIRST), answers(tokenizer, SECOND))
    torch.testing.assert_close(found, torch.tensor([0.4, 0.6, 0.4, 0.6]))
    assert judge.reader.model.model.rows == 2 * 4 * 3


def test_a_tie_counts_half_and_a_tie_in_both_orders_is_no_flip():
    words = torch.tensor([[[0.2, 0.1, 0.7]], [[0.1, 0.3, 0.6]]]).log()  # first's: .2 and .3, ties .7 and .6
    verdicts = Verdicts(words)
    assert verdicts.flipped.tolist() == [False]
    assert verdicts.wins("tie").tolist() == [0.5]
    torch.testing.assert_close(verdicts.wins("mean"), torch.tensor([(0.2 + 0.35 + 0.3 + 0.3) / 2]))


def test_one_order_that_ties_is_a_conflict():
    verdicts = Verdicts(torch.tensor([[[0.6, 0.1, 0.3]], [[0.1, 0.3, 0.6]]]).log())
    assert verdicts.named.tolist() == [[1], [0]]
    assert verdicts.flipped.tolist() == [True]
    assert verdicts.wins("tie").tolist() == [0.5]


def test_a_score_is_the_log_odds_of_the_verdict(tokenizer):
    reader = make_reader(Reference(Stub(lambda one, two: (one / 10, 1 - one / 10, 0.0)), False), tokenizer, 2)
    judge = PointJudge(POINT, reader, partial(plain_texts, tokenizer))
    odds = torch.tensor([1 / 9, 5 / 5, 8 / 2])
    torch.testing.assert_close(judge(answers(tokenizer, [1, 5, 8])), odds.log())


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_a_llama_is_read_as_when_asked_word_by_word(random_llama, tokenizer, attention):
    """A word of two tokens and one of one: the sum of log-probs, whatever else is in the batch."""
    model = random_llama(attn_implementation=attention)
    model.config.vocab_size = model.get_input_embeddings().num_embeddings
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=small_vocabulary(), eos_token="<eos>", unk_token="<unk>")
    reader = make_reader(Reference(model, adapter_off=False), tokenizer, 2)
    requests, words = ["a", "b b a", "a b c a b"], ("c", "b d")
    found = reader(requests, words)
    for row, request in enumerate(requests):
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": request}])
        for column, word in enumerate(words):
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            logps = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            alone = sum(logps[len(prompt) + i - 1, token] for i, token in enumerate(ids))
            torch.testing.assert_close(found[row, column], alone.detach(), atol=1e-5, rtol=0)
    assert not found.requires_grad


def small_vocabulary():
    words = ["<eos>", "<unk>", "Human:", "Assistant:", "a", "b", "c", "d"]
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found


def test_words_that_look_alike_to_the_tokenizer_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"does not tell Yes, No apart"):
        verdict_sequences(tokenizer, None, ["P"], ("Yes", "No"))


@pytest.mark.parametrize("blank", [True, False])
def test_words_of_several_bytes_are_read_whole(blank):
    """A byte-level vocabulary without merges: each of these words is three tokens, and their first bytes are equal."""
    ids = {letter: i for i, letter in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    spelled = Tokenizer(models.BPE(ids, merges=[]))
    spelled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)
    spelled.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelled, eos_token="<eos>")
    words = ("好", "坏")
    rows = verdict_sequences(tokenizer, None, ["?"], words)
    said = [tokenizer.decode(row[own]) for row, own in zip(rows.ids, rows.mask)]
    assert said == [" 好", " 坏"]


def test_a_request_longer_than_the_model_reads_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"has 9 tokens, and its model knows 8 positions.*max_prompt_length"):
        verdict_sequences(tokenizer, 8, ["P P P P P P"], ("A", "B"))
    assert verdict_sequences(tokenizer, 9, ["P P P P P P"], ("A", "B")).ids.shape == (2, 9)


@pytest.mark.parametrize("template", [None, CHAT])
def test_a_prompt_is_read_without_its_frame(tokenizer, template):
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im|>", "<|end|>"]})
    tokenizer.add_tokens(["user", "assistant", "system"])
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "one 3 two"}] if template else "one 3 two")
    sequences = pad_sequences([prompt], [encode_completion(tokenizer, "4 5", True, 9)])
    assert plain_texts(tokenizer, sequences) == (["one 3 two"], ["4 5"])


def test_a_dialogue_keeps_its_speakers_and_no_special_token(tokenizer):
    tokenizer.chat_template = CHAT
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im|>", "<|end|>"]})
    tokenizer.add_tokens(["user", "assistant", "system"])
    said = [("user", "one"), ("assistant", "two"), ("user", "3")]
    prompt = encode_prompt(tokenizer, [{"role": role, "content": content} for role, content in said])
    (text,), _ = plain_texts(tokenizer, pad_sequences([prompt], [[4]]))
    assert text.split() == ["one", "assistant", "two", "user", "3"]
