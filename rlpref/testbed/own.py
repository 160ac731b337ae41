"""How far a policy is from the optimum of the loss it was trained on, where that is not the KL-regularised optimum.

DPO on Bradley-Terry pairs, iterative DPO with the initial reference, and PPO and REINFORCE with the gold reward aim at
the KL-regularised optimum itself: their own regret is the ordinary one, and they are not in OWN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.losses.modifiers import make_modifiers
from rlpref.testbed.coverage import TiedPairs, pair_distribution
from rlpref.testbed.duels import chosen_policy, ipo_optimum
from rlpref.testbed.exact import sequence_kl
from rlpref.testbed.optima import conditionals_of, constrained
from rlpref.testbed.preferences import Preference, preference_model
from rlpref.testbed.task import Testbed

OwnRegret = Callable[[Tensor], float]  # of a policy's conditionals [prompts, inner, vocab]


def own_regret(algorithm: Mapping[str, Any], data: Mapping[str, Any], task: Testbed, ref: Tensor) -> OwnRegret | None:
    """The regret to the optimum of the algorithm's own loss, as a function of a policy's conditionals.

    `algorithm` and `data` are the sections of a checked configuration; `ref` [prompts, inner, vocab] are the
    conditionals of the reference that the pairs are drawn from. None where the own optimum is the KL-regularised
    one, and where it has no closed form: pairs that are not drawn independently or not labelled by the model of
    preferences (other kinds of data), and dropped ties.
    """
    measure = OWN.get((algorithm["kind"], (algorithm.get("loss") or {}).get("name")))
    if make_modifiers(algorithm.get("modifiers") or {}).used:
        return None
    if measure is None or data["source"] != "testbed" or data.get("kind", "pairs") != "pairs":
        return None
    drawn = pair_distribution(data["pairs_from"], data["pairs_from_options"])(task, ref)
    preference = preference_model(data["preference"], data["preference_options"])(task)
    if isinstance(drawn, TiedPairs) or preference.decided:
        return None
    return measure(task, ref, conditionals_of(task, drawn, elsewhere=ref), preference, algorithm)


def own_measure(config: Mapping[str, Any]) -> Callable[[Testbed, Tensor], OwnRegret | None]:
    """From a task and its enumerated reference to the own regret of a run of that checked configuration. No closed form
    is known where the reference moves, where a target steers beta, or at beta 0. Under a constraint the own optimum is
    the constrained one."""
    steered = config["algorithm"].get("kl_target") is not None or config["beta"] == 0
    if steered or config["reference"]["kind"] != "initial":
        return lambda task, ref: None
    if config["constraint"]["kind"] != "none":
        return partial(limited, config)
    return partial(own_regret, config["algorithm"], config["data"])


def limited(config: Mapping[str, Any], task: Testbed, ref: Tensor) -> OwnRegret | None:
    """beta KL(pi || pi*) to the optimum pi* of E[r] - beta KL under the limit, in units of reward, mean over prompts:
    what pi lacks of the Lagrangian at the exact multiplier. None where another cost than the task's is limited.
    Raises ConfigError where no policy keeps the limit."""
    if config["constraint"]["cost"] != "testbed":
        return None
    beta, limit = config["beta"], config["constraint"]["limit"]
    try:
        best = constrained(task, ref, task.rewards, task.costs, beta, limit).policy
    except ValueError as error:
        raise ConfigError(f"constraint.limit cannot be kept: {error}. Raise constraint.limit.") from error
    return lambda policy: beta * float(sequence_kl(task, policy, best).mean())


def ipo(task: Testbed, ref: Tensor, mu: Tensor, preference: Preference, algorithm: Mapping) -> OwnRegret | None:
    """E[p(y beats mu)] - tau KL(pi || ref) at its optimum less at pi = tau KL(pi || optimum), mean over prompts, in
    units of the win rate. Azar et al. 2024 (2310.12036), section 5. None for `normalize: mean`: the loss divided by
    lengths aims elsewhere, with no closed form."""
    loss = algorithm["loss"]
    if loss["normalize"] != "sum":
        return None
    best = ipo_optimum(task, ref, mu, preference, loss["tau"])
    return lambda policy: loss["tau"] * float(sequence_kl(task, policy, best).mean())


def chosen(task: Testbed, ref: Tensor, mu: Tensor, preference: Preference, algorithm: Mapping) -> OwnRegret:
    """KL(chosen answers || pi) in nats, mean over prompts: the cross-entropy on chosen answers less its smallest
    value. The chosen answers follow 2 mu(y) p(y beats mu), see `duels.chosen_policy`."""
    best = chosen_policy(task, mu, preference)
    return lambda policy: float(sequence_kl(task, best, policy).mean())


OWN: dict[tuple[str, str | None], Callable[..., OwnRegret | None]] = {  # (kind of algorithm, its loss)
    ("offline", "ipo"): ipo,
    ("sft", None): chosen,
}
