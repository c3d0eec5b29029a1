"""Malformed bodies, disconnects and slow readers: no status 500, no leak, and everyone else is served."""

import asyncio
import os

import pytest

from tests.inference.tiny_run import load_models, make_run
from tests.serving.abuse import Abuse, count_tasks
from tests.serving.api import with_client

REQUESTS = int(os.environ.get("ALFINE_ABUSE_REQUESTS", "400"))
"""10,000 in the long run of docs/serving.md."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_models(make_run(tmp_path_factory.mktemp("run")))


def test_abuse_harms_nobody_else(models):
    async def test(client, engine):
        abuse = Abuse(f"http://127.0.0.1:{client.port}", seed=1)
        await abuse.run(60)  # what is loaded on first use
        before, memory = count_tasks(), abuse.memory()
        await abuse.run(REQUESTS)
        for _ in range(200):
            if not engine.num_active and not engine.num_waiting and count_tasks() <= before:
                break
            await asyncio.sleep(0.05)
        assert abuse.faults == []
        assert abuse.num_served and abuse.num_refused and abuse.num_disconnected and abuse.num_slow
        assert (engine.num_active, engine.num_waiting) == (0, 0)
        assert count_tasks() <= before
        assert abuse.memory() - memory < 60e6
        return abuse

    abuse = with_client(models, test, {"max_slots": 8}, max_concurrency=8, max_waiting=64, max_body=20_000)
    print(vars(abuse))
