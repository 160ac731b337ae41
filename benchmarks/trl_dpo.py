"""TRL's side of a DPO step: its own DPOTrainer, its own `train`, stopped between passes by a callback."""

from __future__ import annotations

import os
import tempfile

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer
from turns import Turn, timed
from work import Work, as_text, encode

from rlpref.data.rows import Row

# A setting of `per_device_train_batch_size` below the batch is accumulated to it.
SETTINGS = {
    "TRL, defaults": {},
    "TRL, reference precomputed": {"precompute_ref_log_probs": True},
    "TRL, precomputed, pair by pair": {"precompute_ref_log_probs": True, "per_device_train_batch_size": 1},
    "TRL, precomputed, pair by pair, no checkpointing": {
        "precompute_ref_log_probs": True,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": False,
    },
    "TRL, precomputed, no checkpointing": {"precompute_ref_log_probs": True, "gradient_checkpointing": False},
    "TRL, fp32, precomputed": {"precompute_ref_log_probs": True, "bf16": False},
}


class Steps(TrainerCallback):
    """Times each optimizer step, from the first forward pass to the updated weights, and gives the turn away after
    each pass over the pairs."""

    def __init__(self, turn: Turn, work: Work):
        self.turn, self.device, self.steps = turn, work.device, work.pairs // work.batch
        self.seconds: list[float] = []
        self.logged: list[dict] = []
        self.tokens = 0

    def count(self, module, inputs) -> None:
        self.tokens += inputs[0].numel()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.turn()
        elif state.global_step % self.steps == 0:
            report = {"seconds": self.seconds, "logged": self.logged, "computed_tokens": self.tokens}
            self.seconds, self.logged, self.tokens = [], [], 0
            self.turn(report)
        self.took: dict[str, float] = {}
        self.clock = timed(self.took, "step", self.device)
        self.clock.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.__exit__(None, None, None)
        self.seconds.append(self.took["step"])

    def on_log(self, args, state, control, logs, **kwargs):
        self.logged.append(logs)


def trl_dpo(turn: Turn, work: Work, rows: list[Row], settings: dict, beta: float, lr: float) -> None:
    """The side. AdamW as TRL sets it (fused), constant rate, gradients clipped at norm 1, bf16 autocast over fp32
    weights unless `settings` say otherwise."""
    torch.set_num_threads(work.threads)
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        trainer = DPOTrainer(
            model=model,
            args=arguments(work, settings, beta, lr, folder),
            train_dataset=Dataset.from_list([as_text(tokenizer, row) for row in rows]),
            processing_class=tokenizer,
        )
        require_same_ids(trainer.train_dataset, encode(work, tokenizer, rows))
        steps = Steps(turn, work)
        model.get_input_embeddings().register_forward_pre_hook(steps.count)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(steps)
        trainer.train()


def arguments(work: Work, settings: dict, beta: float, lr: float, folder: str) -> DPOConfig:
    at_once = settings.get("per_device_train_batch_size", work.batch)
    common = {
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": work.batch // at_once,
        "max_length": work.max_length,
        "beta": beta,
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "max_steps": 10**6,  # the turns end it
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": work.device == "cpu",
    }
    return DPOConfig(output_dir=folder, **common | settings)


def require_same_ids(dataset: Dataset, pairs) -> None:
    """RuntimeError unless TRL trains on exactly the tokens that rlpref trains on."""
    for i, row in enumerate(dataset):
        for side, ours in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
            mask, scored = ours.attention_mask[i], ours.mask[i]
            if row["prompt_ids"] + row[f"{side}_ids"] != ours.ids[i][mask].tolist():
                raise RuntimeError(f"pair {i} ({side}): TRL's tokens are not ours")
            if len(row[f"{side}_ids"]) != int(scored.sum()):
                raise RuntimeError(f"pair {i} ({side}): TRL scores other tokens")
