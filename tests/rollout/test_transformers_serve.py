"""The engine against the server that comes with transformers, on a free port."""

import json
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest
import torch
from transformers.utils.import_utils import is_serve_available

from rlpref.rollout.engine import LocalEngine
from rlpref.rollout.server import ServerError
from test_server import EOS, ask, engine, policy

START = "from transformers.cli.transformers import app; app()"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="`transformers serve` needs: pip install rlpref[serve]"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Of a server that has just started; no model is loaded before a request names one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = [sys.executable, "-c", START, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(arguments, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


def sharp(seed):
    """A policy that is almost sure of each token, and never draws a special token but EOS."""
    model = policy(seed)
    with torch.no_grad():
        model.lm_head.weight[[1, 2]] = model.lm_head.weight[[3, 4]].mean(0)  # never the likeliest
        model.lm_head.weight *= 40
    return model


def answers(samples):
    return [ids[mask].tolist() for ids, mask in zip(samples.sequences.ids, samples.sequences.mask)]


def test_the_server_answers_with_the_weights_of_each_round(url, tmp_path):
    """As good as greedy, so that both engines draw the same answers."""
    served, local, found = engine(url, tmp_path, concurrency=1), LocalEngine(64), []
    for seed in (0, 1, 2):
        model = sharp(seed)
        expected = ask(local, model, n=6, temperature=0.05)
        samples = ask(served, model, n=6, temperature=0.05)
        assert answers(samples) == answers(expected)
        torch.testing.assert_close(samples.logps, expected.logps, atol=1e-4, rtol=0)
        found.append(answers(samples))
    assert found[0] != found[1] != found[2]
    loaded = httpx.get(f"{url.removesuffix('/v1')}/health").json()
    assert loaded == {"status": "ok"}


def test_nothing_of_the_distribution_is_cut(url, tmp_path):
    """First tokens come as often as the policy says, also unlikely ones (5 sigma), and seeds decide which."""
    model = policy()
    k = 150
    samples = ask(engine(url, tmp_path, concurrency=1), model, k=k, n=1, temperature=2.0)
    expected = ask(LocalEngine(64), model, k=4000, n=1, temperature=2.0)

    def frequencies(drawn):
        first = torch.tensor([ids[0] for ids in answers(drawn)]).view(2, -1)
        return torch.stack([torch.bincount(row, minlength=8) / row.numel() for row in first])

    found, truth = frequencies(samples), frequencies(expected)
    lost = truth[:, 1] + truth[:, 2]  # special tokens are no text: such an answer is an empty one
    truth[:, EOS] += lost
    truth[:, 1:3] = 0
    assert ((found - truth).abs() < 5 * (truth * (1 - truth) / k + 1 / 4000).sqrt()).all()


def test_the_same_seed_gives_the_same_answers(url, tmp_path):
    model = policy()
    served = engine(url, tmp_path, concurrency=1)
    first, again, other = (answers(ask(served, model, k=5, n=6, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_folder_that_is_no_model_is_an_error(url, tmp_path):
    served = engine(url, tmp_path, concurrency=1)
    model = policy()
    ask(served, model)
    served.dialect.client.post(f"{url.removesuffix('/v1')}/reset")
    (config,) = tmp_path.glob("served/*/config.json")
    config.write_text(json.dumps({"model_type": "none"}))
    with pytest.raises(ServerError, match="refused with 500"):
        ask(served, model)
