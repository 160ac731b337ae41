"""A plain PPO round, as scripts around Hugging Face's `generate` write it: what rlpref's round is timed against.

TRL 1.16 has no PPO trainer any more; this is the round of its last one (0.24) on one device. fp32 weights, forward and
backward passes under bf16 autocast, full padded passes of policy, reference and value model, log-softmax over the
logits of all answer positions, AdamW over both. `generate` runs in fp32 as it did there, or under autocast.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer
from turns import Turn, timed
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@dataclass
class Round:
    """What both sides do in a round."""

    model: str
    prompts: int
    new_tokens: int
    batch: int  # answers in a minibatch; one epoch
    beta: float
    lr: float
    device: str
    threads: int
    gamma: float = 1.0
    gae_lambda: float = 0.95
    cliprange: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 1.0


class Plain:
    """The loop's models."""

    def __init__(self, work: Round, prompts: list[str], autocast_generation: bool):
        self.work, self.prompts, self.autocast_generation = work, prompts, autocast_generation
        self.tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
        self.policy = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).to(work.device)
        self.ref = copy.deepcopy(self.policy).requires_grad_(False)
        critic = AutoModelForTokenClassification.from_pretrained(work.model, num_labels=1, dtype=torch.float32)
        nn.init.zeros_(critic.score.weight)
        self.critic = critic.to(work.device)
        for model in (self.policy, self.ref, self.critic):
            model.eval()  # no dropout
        self.trained = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.AdamW(self.trained, lr=work.lr, weight_decay=0.0, fused=True)
        self.polarity = SentimentIntensityAnalyzer().polarity_scores

    def autocast(self, enabled: bool = True):
        return torch.autocast(self.work.device, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def generate(self) -> tuple[Tensor, Tensor, int]:
        """(ids [B, P + N], attention mask, P): prompts on the left, answers with their EOS on the right."""
        read = self.tokenizer(self.prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        read = read.to(self.work.device)
        with self.autocast(self.autocast_generation):
            ids = self.policy.generate(
                input_ids=read["input_ids"],
                attention_mask=read["attention_mask"],
                max_new_tokens=self.work.new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        start = read["input_ids"].shape[1]
        ended = (ids[:, start:] == self.tokenizer.eos_token_id).cumsum(1)
        answered = (ended == 0) | ((ended == 1) & (ids[:, start:] == self.tokenizer.eos_token_id))
        return ids, torch.cat([read["attention_mask"], answered.long()], 1), start

    def logps(self, model: nn.Module, ids: Tensor, mask: Tensor, start: int) -> Tensor:
        with self.autocast():
            logits = model(ids, attention_mask=mask, position_ids=_positions(mask), use_cache=False).logits
        logps = logits[:, start - 1 : -1].float().log_softmax(-1)
        return logps.gather(-1, ids[:, start:, None])[..., 0]

    def values(self, ids: Tensor, mask: Tensor, start: int) -> Tensor:
        with self.autocast():
            values = self.critic(ids, attention_mask=mask, position_ids=_positions(mask), use_cache=False).logits
        return values[:, start - 1 : -1, 0].float()

    def scores(self, ids: Tensor, mask: Tensor, start: int) -> Tensor:
        answers = [row[seen].tolist() for row, seen in zip(ids[:, start:], mask[:, start:].bool())]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        found = [self.polarity(text)["compound"] if text.strip() else 0.0 for text in texts]
        return torch.tensor(found, device=ids.device)

    @torch.no_grad()
    def collect(self, ids: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        """Scores, passes of the three models in minibatches, KL-shaped rewards, advantages."""
        parts = [(ids[rows], mask[rows], start) for rows in torch.arange(len(ids)).split(self.work.batch)]
        old = torch.cat([self.logps(self.policy, *part) for part in parts])
        ref = torch.cat([self.logps(self.ref, *part) for part in parts])
        values = torch.cat([self.values(*part) for part in parts])
        answered = mask[:, start:].bool()
        scores = self.scores(ids, mask, start)
        rewards = torch.where(answered, -self.work.beta * (old - ref), 0.0)
        rewards[torch.arange(len(ids)), answered.sum(1) - 1] += scores
        values = torch.where(answered, values, 0.0)
        advantages = _gae(rewards, values, self.work.gamma, self.work.gae_lambda)
        returns = advantages + values
        kept = advantages[answered]
        advantages = (advantages - kept.mean()) / (kept.std() + 1e-8)
        found = {"old": old, "values": values, "advantages": advantages, "returns": returns, "scores": scores}
        return found | {"ids": ids, "mask": mask}

    def update(self, batch: dict[str, Tensor], start: int) -> None:
        """One optimizer step on the clipped losses of policy and value model."""
        work, answered = self.work, batch["mask"][:, start:].bool()
        logps = self.logps(self.policy, batch["ids"], batch["mask"], start)
        values = self.values(batch["ids"], batch["mask"], start)
        ratio = torch.where(answered, logps - batch["old"], 0.0).exp()
        clipped = ratio.clamp(1 - work.cliprange, 1 + work.cliprange)
        policy = torch.maximum(-batch["advantages"] * ratio, -batch["advantages"] * clipped)
        near = batch["values"] + (values - batch["values"]).clamp(-work.cliprange, work.cliprange)
        value = 0.5 * torch.maximum((values - batch["returns"]) ** 2, (near - batch["returns"]) ** 2)
        (policy + work.vf_coef * value)[answered].mean().backward()
        nn.utils.clip_grad_norm_(self.trained, work.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def round(self) -> dict:
        """Seconds of its parts, tokens of all answers and their mean score."""
        seconds: dict[str, float] = {}
        with timed(seconds, "generate", self.work.device):
            ids, mask, start = self.generate()
        with timed(seconds, "passes", self.work.device):
            experience = self.collect(ids, mask, start)
        with timed(seconds, "update", self.work.device):
            for rows in torch.randperm(len(ids)).split(self.work.batch):
                self.update({name: column[rows] for name, column in experience.items()}, start)
        tokens = int(mask[:, start:].sum())
        return {"seconds": seconds, "new_tokens": tokens, "score": float(experience["scores"].mean())}


def plain(turn: Turn, work: Round, prompts: list[str], autocast_generation: bool) -> None:
    """The side."""
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    loop = Plain(work, prompts, autocast_generation)
    turn()
    while True:
        turn(loop.round())


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _gae(rewards: Tensor, values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    advantages, last = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        last = rewards[:, t] + gamma * after - values[:, t] + gamma * gae_lambda * last
        advantages[:, t] = last
    return advantages
