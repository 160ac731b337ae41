"""rlpref.rewards.scorer: the preference that a score makes."""

import torch

from rlpref.rewards.scorer import BradleyTerry


def test_a_score_prefers_by_the_sigmoid_of_the_difference_and_reads_an_answer_once(task, testbed_models, testbed_data):
    models, asked = testbed_models(task), []
    pairs = testbed_data(task, models).train

    def scorer(sequences):
        asked.append(len(sequences))
        return models.gold(sequences)

    found = BradleyTerry(scorer)(pairs.chosen, pairs.rejected)
    torch.testing.assert_close(found, (models.gold(pairs.chosen) - models.gold(pairs.rejected)).sigmoid())
    both = {tuple(row) for side in (pairs.chosen, pairs.rejected) for row in (side.ids * side.attention_mask).tolist()}
    assert asked == [len(both)] < [2 * len(pairs)]
