import pytest


@pytest.fixture
def laboratory(task, random_policy, testbed_models, testbed_data):
    """A policy away from its reference."""
    models = testbed_models(task)
    data = testbed_data(task, models)
    models.policy.set_conditionals(random_policy(task, 1))
    return models, data
