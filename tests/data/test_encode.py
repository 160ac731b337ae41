import time

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.data.encode import encode_answers, encode_lists, encode_pairs, encode_rows
from rlpref.data.rows import KwiseRow, Row, UnpairedRow
from rlpref.data.tokenise import encode_prompt, encode_prompts
from rlpref.models.gguf import smollm2_135m

BOS, EOS = 1, 2
SHORT = "the film"  # ids 3, 4


def real(sequences, row):
    return sequences.ids[row][sequences.attention_mask[row]].tolist()


def scored(sequences, row):
    return sequences.ids[row][sequences.mask[row]].tolist()


def test_pairs_golden(words_with_bos):
    rows = [
        Row("0", SHORT, "was great", "bad", 2.0, -1.0),
        Row("1", "a", "b", "c d", 1.0, 0.5, None, None, True, False),
    ]
    pairs, counts = encode_pairs(rows, words_with_bos, 8, 4)
    assert pairs.chosen.ids.tolist() == [[BOS, 3, 4, 5, 6, EOS], [BOS, 11, 12, EOS, 0, 0]]
    assert pairs.chosen.mask.int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]]
    assert pairs.chosen.attention_mask.int().tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert pairs.rejected.ids.tolist() == [[BOS, 3, 4, 7, EOS], [BOS, 11, 13, 14, 0]]
    assert pairs.chosen_score.tolist() == [2.0, 1.0]
    assert pairs.rejected_score.tolist() == [-1.0, 0.5]
    assert counts == {
        "prompts": 2,
        "prompts_truncated": 0,
        "completions": 4,
        "completions_truncated": 0,
        "completions_without_eos": 1,
        "pairs_identical": 0,
    }


def test_the_prompt_is_a_prefix_of_both_and_never_merges_with_the_answer(byte_bpe):
    row = Row("0", "t", "he end", "urn")  # 't' + 'he' would become the token 'th' if encoded together
    pairs, _ = encode_pairs([row], byte_bpe, 8, 16)
    prompt = encode_prompt(byte_bpe, "t")
    for side, answer in ((pairs.chosen, "he end"), (pairs.rejected, "urn")):
        assert real(side, 0)[: len(prompt)] == prompt
        assert byte_bpe.decode(scored(side, 0)) == answer + "<eos>"
    assert real(pairs.chosen, 0) != [*byte_bpe("the end")["input_ids"], 0]


def test_a_long_prompt_keeps_its_end_and_its_bos_alike_on_both_sides(words, words_with_bos):
    row = Row("0", "a b c d the film", "great", "bad")
    for tokenizer, kept in ((words, [14, 3, 4]), (words_with_bos, [BOS, 3, 4])):
        pairs, counts = encode_pairs([row], tokenizer, 3, 4)
        assert real(pairs.chosen, 0) == [*kept, 6, EOS]
        assert real(pairs.rejected, 0) == [*kept, 7, EOS]
        assert counts["prompts_truncated"] == 1
        assert encode_prompts([row.prompt], tokenizer, 3).ids.tolist() == [kept]
    with pytest.raises(ConfigError, match="too short"):
        encode_prompts([row.prompt], words_with_bos, 1)


def test_truncation_and_identical_pairs_are_counted(words):
    rows = [
        Row("cut", SHORT, "a b c d a", "a b c d b"),  # both cut to the same four tokens
        Row("fills", SHORT, "a b c d", "great"),
        Row("budget", SHORT, "great", "bad", rejected_finished=False),
    ]
    _, counts = encode_pairs(rows, words, 8, 4)
    assert counts["completions_truncated"] == 2
    assert counts["completions_without_eos"] == 4
    assert counts["pairs_identical"] == 1


def test_scores_are_tensors_only_when_every_row_has_them(words):
    rows = [Row("0", SHORT, "great", "bad", 1.0, 0.0), Row("1", SHORT, "great", "bad", 1.0)]
    pairs, _ = encode_pairs(rows, words, 8, 4)
    assert pairs.chosen_score.tolist() == [1.0, 1.0]
    assert pairs.rejected_score is None


def test_plain_dialogue_answers_open_with_a_blank_unless_the_tokenizer_adds_it(byte_bpe, sentencepiece, chat):
    row = Row("0", [{"role": "user", "content": "a"}], "a", "b")
    pairs, _ = encode_pairs([row], byte_bpe, 99, 4)
    assert byte_bpe.decode(real(pairs.chosen, 0)) == "\n\nHuman: a\n\nAssistant: a<eos>"
    pairs, _ = encode_pairs([row], sentencepiece, 99, 4)
    assert sentencepiece.convert_ids_to_tokens(scored(pairs.chosen, 0)) == ["▁a", "<eos>"]
    pairs, _ = encode_pairs([row], chat, 99, 4)
    assert chat.convert_ids_to_tokens(scored(pairs.chosen, 0)) == ["a", "<eos>"]


def test_padding_is_never_read_from_ids(words):
    """With pad == eos a mask made from ids would lose the trained EOS."""
    assert words.pad_token_id == words.eos_token_id
    pairs, _ = encode_pairs([Row("0", SHORT, "great", "a b c")], words, 8, 4)
    assert pairs.chosen.lengths.tolist() == [2]
    assert scored(pairs.chosen, 0)[-1] == EOS


def test_forty_thousand_short_rows_take_seconds(words):
    rows = [Row(str(i), SHORT, "a " * (i % 3) + "great", "bad " * (i % 4 + 1)) for i in range(40_000)]
    start = time.process_time()
    pairs, counts = encode_pairs(rows, words, 8, 4)
    assert time.process_time() - start < 10  # about 1 s on an idle machine
    assert counts["completions"] == 80_000
    assert len(pairs) == 40_000


def test_weights_are_1_where_a_row_has_none_and_soft_labels_are_there_for_all_rows_or_none(words):
    rows = [Row("0", SHORT, "great", "bad", weight=0.5), Row("1", SHORT, "great", "bad", soft_label=0.75)]
    pairs, _ = encode_pairs(rows, words, 8, 4)
    assert pairs.weight.tolist() == [0.5, 1.0]
    assert pairs.soft_label is None
    assert encode_pairs(rows[1:], words, 8, 4)[0].soft_label.tolist() == [0.75]
    plain, _ = encode_pairs([Row("0", SHORT, "great", "bad")], words, 8, 4)
    assert (plain.weight, plain.soft_label) == (None, None)


def test_answers_golden(words_with_bos):
    rows = [
        UnpairedRow("0", SHORT, "was great", True, score=1.0),
        UnpairedRow("1", "a", "b c d a b", False, score=-1.0, weight=2.0),
    ]
    answers, counts = encode_answers(rows, words_with_bos, 8, 4)
    assert answers.sequences.ids.tolist() == [[BOS, 3, 4, 5, 6, EOS], [BOS, 11, 12, 13, 14, 11]]
    assert answers.label.tolist() == [True, False]
    assert answers.label.dtype == torch.bool
    assert (answers.score.tolist(), answers.weight.tolist()) == ([1.0, -1.0], [1.0, 2.0])
    assert scored(answers.mismatched, 0) == scored(answers.sequences, 1)
    assert scored(answers.mismatched, 1) == scored(answers.sequences, 0)
    assert real(answers.mismatched, 1)[:2] == [BOS, 11]
    assert counts == {
        "prompts": 2,
        "prompts_truncated": 0,
        "completions": 2,
        "completions_truncated": 1,
        "completions_without_eos": 1,
    }


def test_lists_golden(words):
    rows = [
        KwiseRow("0", SHORT, ["great", "was bad", "dull"], [1.0, 0.5, -1.0], finished=[True, True, False]),
        KwiseRow("1", "a", ["b", "c"], [0.0, 2.0], weight=0.5),
    ]
    lists, counts = encode_lists(rows, words, 8, 4)
    assert lists.answers.ids.shape == (2, 3, 5)
    assert lists.present.tolist() == [[True, True, True], [True, True, False]]
    assert lists.scores.tolist() == [[1.0, 0.5, -1.0], [0.0, 2.0, 0.0]]
    assert lists.weight.tolist() == [1.0, 0.5]
    found = [real(lists.flat(), n) for n in range(5)]
    assert found == [[3, 4, 6, EOS], [3, 4, 5, 7, EOS], [3, 4, 8], [11, 12, EOS], [11, 13, EOS]]
    assert scored(lists.flat(), 1) == [5, 7, EOS]
    assert not lists.answers.attention_mask[1, 2].any()
    assert (counts["prompts"], counts["completions"], counts["completions_without_eos"]) == (2, 5, 1)


def test_an_answer_without_tokens_is_named_by_row_and_place(words):
    with pytest.raises(ConfigError, match=r"row 'r7' .responses.1.."):
        encode_rows([KwiseRow("r7", SHORT, ["a", " "], [0.0, 1.0], finished=[True, False])], words, 8, 4)
    with pytest.raises(ConfigError, match="row 'r8'"):
        encode_rows([UnpairedRow("r8", SHORT, " ", True, finished=False)], words, 8, 4)


@pytest.mark.slow
def test_smollm2_golden_strings():
    try:
        tokenizer = smollm2_135m("float32", "sdpa", None).tokenizer
    except ConfigError as error:  # the package with the weights is not installed
        pytest.skip(str(error))
    rows = [
        Row("chat", [{"role": "user", "content": "Hi"}], "Hello!", "No."),
        Row("text", "The film was", " great.", " bad.", rejected_finished=False),
    ]
    pairs, _ = encode_pairs(rows, tokenizer, 64, 8)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    start = f"{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(real(pairs.chosen, 0)) == start + "Hello!<|im_end|>"
    assert tokenizer.decode(scored(pairs.chosen, 0)) == "Hello!<|im_end|>"
    assert tokenizer.decode(real(pairs.chosen, 1)) == "The film was great.<|im_end|>"
    assert tokenizer.decode(real(pairs.rejected, 1)) == "The film was bad."
