"""rlpref.models.mixture: the sampler draws from the geometric mixture, whatever the models."""

import copy

import pytest
import torch

from rlpref.models.mixture import Mixture
from rlpref.models.reference import freeze
from rlpref.ops.logps import token_logps
from rlpref.rollout.sampler import sample
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.task import places
from rlpref.types import Prompts


def draw(model, ids, k, attention=None):
    attention = torch.ones_like(ids, dtype=torch.bool) if attention is None else attention
    return sample(model, Prompts(ids, attention), k, 3, 1.0, 0, [torch.Generator().manual_seed(0)])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_on_a_table_answers_come_as_often_as_the_mixture_has_them(task, random_policy, testbed_models, share):
    models, n = testbed_models(task, policy := random_policy(task, 1)), 40_000
    mixture = Mixture(models.policy, models.ref, share)
    drawn = draw(mixture, torch.tensor([[3], [4]]), n).sequences
    mixed = ((1 - share) * policy + share * task.ref).log_softmax(-1)
    chance = answer_logps(task, mixed).flatten(1).exp()
    prompt, place = places(task.tree, drawn)
    found = torch.zeros_like(chance).index_put((prompt, place), torch.tensor(1 / n).double(), accumulate=True)
    assert ((found - chance).abs() < 5 * (chance * (1 - chance) / n).sqrt() + 1e-4).all()


def test_on_a_transformer_log_probs_are_those_of_the_mixed_logits(random_llama):
    """Prompts of unequal length, so that padding and both caches matter; shares 0 and 1 are the two models."""
    policy = random_llama()
    ref = freeze(random_llama(seed=1))
    ids = torch.tensor([[7, 7, 3, 4], [1, 2, 3, 4], [7, 5, 2, 2]])
    attention = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    before = copy.deepcopy(policy.state_dict())
    for share, same in [(0.0, policy), (1.0, ref.model)]:
        found = draw(Mixture(policy, ref, share), ids, 4, attention)
        torch.testing.assert_close(found.logps.double(), token_logps(same, found.sequences)[0], atol=1e-5, rtol=0)
    found = draw(Mixture(policy, ref, 0.4), ids, 4, attention).sequences
    inputs = {"input_ids": found.ids, "attention_mask": found.attention_mask.long(), "position_ids": found.position_ids}
    one, other = policy(**inputs).logits, ref.model(**inputs).logits
    mixed = (0.6 * one + 0.4 * other).log_softmax(-1)[:, :-1].gather(2, found.ids[:, 1:, None])[..., 0]
    drawn = draw(Mixture(policy, ref, 0.4), ids, 4, attention)
    expected = torch.where(found.mask[:, 1:], mixed, 0.0)
    torch.testing.assert_close(drawn.logps[:, 1:].double(), expected, atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
