"""Known bugs, planted one at a time: `python tests/plants.py [name ...]` shows that a test catches each.

Each plant is a bug that a preference-optimization code base has had. The package is copied, one line is changed, and
the named tests must fail on the copy; unchanged they must pass. tests/README.md is the list, made by `--table`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Plant:
    name: str
    bug: str
    file: str  # in rlpref/
    sound: str  # text that stands in the file exactly once
    planted: str
    caught_by: str  # in tests/


PLANTS = [
    Plant(
        "kl_sign",
        "PPO pays for distance from the reference instead of charging for it",
        "ops/gae.py",
        "rewards = -(beta * log_ratio.T).T",
        "rewards = (beta * log_ratio.T).T",
        "algorithms/test_ppo.py",
    ),
    Plant(
        "eos_unmasked",
        "the EOS of a sampled answer is left out of the mask and never trained",
        "rollout/sampler.py",
        "< lengths[:, None]",
        "< lengths[:, None] - 1",
        "rollout/test_sampler.py",
    ),
    Plant(
        "reference_moves",
        "the reference follows the policy though the setting says `initial`",
        "models/reference_rule.py",
        "return snapshot(policy) if self.moves else initial",
        "return Reference(policy, adapter_off=False)",
        "models/test_reference_rule.py",
    ),
    Plant(
        "stale_reference",
        "after the reference has moved, the loss goes on with the log-probs that were stored before",
        "algorithms/objective.py",
        "if not objective.reads_reference or models.rule.moves_within_rounds:",
        "if not objective.reads_reference:",
        "test_reference_runs.py",
    ),
    Plant(
        "whitening_over_padding",
        "advantages are whitened with the mean over padding too",
        "ops/masked.py",
        "mean = masked_mean(values, mask, keepdim=True)",
        "mean = values.mean()",
        "ops/test_masked.py",
    ),
    Plant(
        "no_reference",
        "the log-probs of the reference are forgotten on the rejected side",
        "losses/pairs.py",
        "lp.rejected - lp.ref_rejected",
        "lp.rejected",
        "losses/test_pairs.py",
    ),
    Plant(
        "ipo_target",
        "IPO's target is 1/tau instead of 1/(2 tau)",
        "losses/pairs.py",
        "1 / (2 * tau)",
        "1 / tau",
        "losses/test_pairs.py",
    ),
    Plant(
        "logits_off_by_one",
        "a token is scored by the logits that have already read it",
        "ops/logps.py",
        "slice(0, width - 1)",
        "slice(1, width)",
        "ops/test_logps.py",
    ),
    Plant(
        "temperature_forgotten",
        "log-probs are taken at temperature 1 whatever the policy is sampled at",
        "ops/logps.py",
        "logits if temperature == 1 else logits / temperature",
        "logits",
        "ops/test_logps.py",
    ),
    Plant(
        "positions_count_padding",
        "position ids count the padding on the left",
        "types.py",
        "(self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)",
        "torch.arange(self.ids.shape[1]).expand_as(self.ids)",
        "ops/test_logps.py",
    ),
    Plant(
        "gae_bootstraps_past_the_end",
        "the advantage of the last token looks at the value of the padding after it",
        "ops/gae.py",
        "next_value = torch.where(mask[:, t], values[:, t], torch.zeros_like(next_value))",
        "next_value = values[:, t]",
        "ops/test_gae.py",
    ),
    Plant(
        "clip_takes_the_better",
        "PPO's clipping takes the more favourable of the two objectives",
        "losses/rollouts.py",
        "torch.maximum(-advantages * ratio",
        "torch.minimum(-advantages * ratio",
        "losses/test_rollouts.py",
    ),
    Plant(
        "mean_of_means",
        "micro-batches are averaged as if they held equally many tokens",
        "update.py",
        "blocks(loss.weight * loss.value, n)",
        "blocks(loss.weight.mean() * loss.value, n)",
        "test_gradients.py",
    ),
    Plant(
        "score_on_padding",
        "a reward model reads its score at the last column, which may be padding",
        "models/heads.py",
        "last = last_masked(sequences.attention_mask)",
        "last = torch.full((len(values),), values.shape[1] - 1)",
        "models/test_heads.py",
    ),
    Plant(
        "pairs_swapped",
        "the worst answer is labelled as chosen",
        "algorithms/pair_rules.py",
        "return rows, scores.argmax(1)[rows], scores.argmin(1)[rows]",
        "return rows, scores.argmin(1)[rows], scores.argmax(1)[rows]",
        "algorithms/test_iterative.py",
    ),
    Plant(
        "ties_win",
        "a tie counts as a win",
        "evaluation/estimates.py",
        "+ 0.5 * ties",
        "+ ties",
        "evaluation/test_estimates.py",
    ),
    Plant(
        "dialogues_leak",
        "a dialogue and its continuation fall on both sides of the split",
        "data/rows.py",
        "prompt_key(opening(prompt))",
        "prompt_key(prompt)",
        "data/test_rows.py",
    ),
    Plant(
        "k3_inverted",
        "the k3 estimator of the KL has its ratio upside down",
        "ops/kl.py",
        "torch.expm1(-log_ratio) + log_ratio",
        "torch.expm1(log_ratio) - log_ratio",
        "ops/test_kl.py",
    ),
    Plant(
        "cut_answers_unpenalised",
        "the EOS rule is applied to finished answers instead of cut ones",
        "algorithms/common.py",
        "torch.where(finished, scores, cut)",
        "torch.where(finished, cut, scores)",
        "algorithms/test_ppo.py",
    ),
    Plant(
        "own_baseline",
        "an answer stands in its own leave-one-out baseline",
        "ops/baselines.py",
        "(values.sum(-1, keepdim=True) - values) / (k - 1)",
        "values.mean(-1, keepdim=True).expand_as(values)",
        "algorithms/test_reinforce.py",
    ),
    Plant(
        "baseline_sees_the_round",
        "the moving baseline takes in the very answers that it is taken off",
        "algorithms/carried.py",
        "return before.to(returns)",
        'return round.carried["baseline"].to(returns)',
        "algorithms/test_reinforce.py",
    ),
]


def sound_places(plant: Plant, root: Path = ROOT) -> int:
    """How often the text to change stands in the plant's file: 1, or the plant no longer fits the code."""
    return (root / "rlpref" / plant.file).read_text(encoding="utf-8").count(plant.sound)


def copied(folder: Path) -> Path:
    """The checkout without what runs have left in it."""
    kept = ("rlpref", "tests", "conf", "notebooks")
    for name in kept:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def fails(root: Path, tests: str) -> bool:
    """Whether the tests fail on the package under `root`. Raises RuntimeError where they cannot be run."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{tests}"]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{tests} could not be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def caught(plant: Plant, root: Path) -> bool:
    """Whether the plant's tests fail once it is planted in the copy at `root`, which is mended afterwards."""
    file = root / "rlpref" / plant.file
    sound = file.read_text(encoding="utf-8")
    file.write_text(sound.replace(plant.sound, plant.planted), encoding="utf-8")
    try:
        return fails(root, plant.caught_by)
    finally:
        file.write_text(sound, encoding="utf-8")


def table() -> str:
    """The list of plants as Markdown."""
    lines = ["| plant | bug | file | caught by |", "|---|---|---|---|"]
    lines += [f"| `{p.name}` | {p.bug} | `rlpref/{p.file}` | `tests/{p.caught_by}` |" for p in PLANTS]
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    unknown = set(names) - {plant.name for plant in PLANTS}
    if unknown:
        print(f"no such plant: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [plant for plant in PLANTS if not names or plant.name in names]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = copied(Path(folder))
        for tests in sorted({plant.caught_by for plant in chosen}):
            if fails(root, tests):
                print(f"tests/{tests} fails without any plant", file=sys.stderr)
                return 2
        for plant in chosen:
            found = caught(plant, root)
            missed += not found
            print(f"{'caught' if found else 'MISSED'}  {plant.name}: {plant.bug} (tests/{plant.caught_by})", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        print(table(), end="")
    else:
        raise SystemExit(main(sys.argv[1:]))
