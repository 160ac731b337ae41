import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.data.encode import encode_pairs
from rlpref.data.rows import Row
from rlpref.data.tokenise import encode_completion, encode_prompt, encode_prompts

BOS, EOS = 1, 2
SHORT = "the film"  # ids 3, 4
TURNS = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was"}]
QUESTION = [*TURNS, {"role": "user", "content": "very"}]


def test_text_prompt_has_the_tokenizers_bos_once_and_no_eos(words, words_with_bos):
    assert words_with_bos(SHORT)["input_ids"] == [BOS, 3, 4, EOS]
    assert encode_prompt(words_with_bos, SHORT) == [BOS, 3, 4]
    assert encode_prompt(words_with_bos, "<bos> <bos> the film") == [BOS, 3, 4]
    assert encode_prompt(words, SHORT) == [3, 4]


def test_chat_prompt_is_the_template_with_the_generation_prompt_and_no_added_token(chat):
    ids = encode_prompt(chat, QUESTION)
    expected = "<user> the film <end> <assistant> was <end> <user> very <end> <assistant>"
    assert chat.convert_ids_to_tokens(ids) == expected.split()


def test_chat_prompt_without_template_is_the_plain_dialogue(byte_bpe):
    ids = encode_prompt(byte_bpe, QUESTION)
    assert byte_bpe.decode(ids) == "\n\nHuman: the film\n\nAssistant: was\n\nHuman: very\n\nAssistant:"


def test_a_prompt_without_tokens_and_a_refusing_template_are_errors(words, chat):
    with pytest.raises(ConfigError, match="no tokens"):
        encode_prompt(words, "  ")
    chat.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(ConfigError, match="no system turns"):
        encode_prompt(chat, QUESTION)


@pytest.mark.parametrize(
    ("text", "finished", "ids"),
    [
        ("great", True, [6, EOS]),
        ("great", False, [6]),
        ("great and bad", True, [6, 10, 7, EOS]),
        ("a b c d", True, [11, 12, 13, 14]),  # fills the horizon: a sampler would not have drawn EOS
        ("a b c d a b", True, [11, 12, 13, 14]),
        ("great <eos>", True, [6, EOS]),
        ("great <eos> <eos>", False, [6, EOS]),
        ("", True, [EOS]),  # stopping at once is an answer
    ],
)
def test_completion_golden_ids(words, words_with_bos, text, finished, ids):
    assert encode_completion(words, text, finished, max_length=4) == ids
    assert encode_completion(words_with_bos, text, finished, max_length=4) == ids


def test_completions_that_cannot_be_scored_are_refused(words):
    with pytest.raises(ConfigError, match="no tokens"):
        encode_completion(words, "", False, 4)
    with pytest.raises(ConfigError, match="EOS token in its middle"):
        encode_completion(words, "great <eos> bad", True, 4)
    with pytest.raises(ConfigError, match=r"row 'r7' .rejected."):
        encode_pairs([Row("r7", SHORT, "great", " ", rejected_finished=False)], words, 8, 4)
    words.eos_token = None
    with pytest.raises(ConfigError, match="no EOS"):
        encode_completion(words, "great", True, 4)


def test_prompts_are_padded_on_the_left(words):
    prompts = encode_prompts([SHORT, "a b c"], words, 8)
    assert prompts.ids.tolist() == [[0, 3, 4], [11, 12, 13]]
    assert prompts.attention_mask.int().tolist() == [[0, 1, 1], [1, 1, 1]]
    assert prompts.ids.dtype == torch.long
    assert prompts.attention_mask.dtype == torch.bool
