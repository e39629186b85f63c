"""The gateway's series: there before they are needed, and no client makes more of them."""

from __future__ import annotations

import re

import httpx

from tests.integration.test_hot_path import ask, between, counted, whole


def names(text: str) -> set[str]:
    """Every series of an exposition, labels included."""
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line and line[0] != "#"}


async def test_series_are_there_before_the_first_request_and_count_it() -> None:
    async with between(whole) as (_, port, gateway):
        before = gateway._own_metrics()
        for series in (
            'engineroom_ttft_seconds_count{model="m"} 0.0',
            'engineroom_itl_seconds_count{model="m"} 0.0',
            'engineroom_queue_seconds_count{model="m"} 0.0',
            'engineroom_prompt_tokens_total{model="m"} 0.0',
            'engineroom_generated_tokens_total{model="m"} 0.0',
            'engineroom_client_disconnects_total{model="m"} 0.0',
            'engineroom_rejects_total{model="m",reason="queue_full"} 0.0',
            'engineroom_rejects_total{model="other",reason="model_not_found"} 0.0',
            'engineroom_upstream_errors_total{code="engine_died",model="m"} 0.0',
            'engineroom_requests_total{code="200",model="m",route="/v1/completions"} 0.0',
        ):
            assert series in before, series
        await ask(port, 2)
        assert counted(gateway, "engineroom_itl_seconds_count") == 2
        assert counted(gateway, "engineroom_generated_tokens_total") == 2 * 3
        assert counted(gateway, "engineroom_prompt_tokens_total") > 0


async def test_random_models_paths_and_methods_make_no_series() -> None:
    async with between(whole) as (_, port, gateway):
        url = f"http://127.0.0.1:{port}"

        async def abuse(http: httpx.AsyncClient, number: int) -> None:
            body = {"model": f"no-such-{number}", "prompt": "Hi"}
            assert (await http.post(f"{url}/v1/completions", json=body)).status_code == 404
            text = {"content-type": "text/plain"}
            await http.post(f"{url}/generate", content=b"x", headers=text)
            await http.post(f"{url}/generate?p={number}", json={"prompt": "Hi", f"f{number}": 1})

        async with httpx.AsyncClient(trust_env=False) as http:
            await abuse(http, 0)
            before = names(gateway._own_metrics())
            for number in range(1, 200):
                await abuse(http, number)
        after = gateway._own_metrics()
        assert names(after) == before
        assert not re.search("no-such|f17", after)
        assert 'engineroom_rejects_total{model="other",reason="model_not_found"} 200.0' in after
        assert counted(gateway, "engineroom_rejects_total") == 600


async def test_a_model_that_is_gone_has_no_gauges() -> None:
    async with between(whole) as (_, port, gateway):
        assert 'engineroom_model_ready{model="m"} 1.0' in gateway._own_metrics()
        await ask(port, 1)
        gateway.metrics.known([], [])
        text = gateway.metrics.render().decode()
        assert 'engineroom_model_ready{model="m"}' not in text
        assert 'engineroom_requests_total{code="200",model="m",route="/v1/completions"} 1.0' in text
