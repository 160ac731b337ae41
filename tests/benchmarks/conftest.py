"""Something for the benchmarks to work on in a second: a tiny Llama that reads bytes, and pairs of a few words."""

import json
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import runs

sys.path.insert(0, str(runs.ROOT / "benchmarks"))  # scripts beside each other, as when one of them is run

from turns import NoMoreTurns
from work import Work

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    vocab = {letter: i for i, letter in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    letters = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def work(model, tmp_path_factory) -> Work:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {
            "id": f"row-{i}",
            "prompt": [{"role": "user", "content": f"how is film {i}?"}],
            "chosen": "great" + "!" * (i % 5),
            "rejected": "dull, and very long",
        }
        for i in range(40)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Work(model, str(file), pairs=4, batch=2, max_length=64, device="cpu", threads=1)


@pytest.fixture(scope="session")
def passes():
    """The reports of so many passes of a side, in this process."""

    def run(side, count: int, **settings) -> list[dict]:
        reports = []

        def turn(report=None):
            reports.extend([report] if report else [])
            if len(reports) == count:
                raise NoMoreTurns

        with pytest.raises(NoMoreTurns):
            side(turn, **settings)
        return reports

    return run
