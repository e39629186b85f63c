"""What one would write first: a proxy of FastAPI and httpx, to be measured beside the gateway.

python -m bench.gateway.plain_proxy UPSTREAM PORT
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

_KEPT = ("content-type", "content-length")


def app(upstream: str) -> FastAPI:
    """Everything below `/v1` goes on as it came, and comes back as it is made."""
    made = FastAPI()
    http = httpx.AsyncClient(
        base_url=upstream, timeout=None, limits=httpx.Limits(max_keepalive_connections=512)
    )

    @made.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @made.post("/v1/{path:path}")
    async def relay(path: str, request: Request) -> StreamingResponse:
        asked = http.build_request(
            "POST", f"/v1/{path}", content=await request.body(),
            headers={"content-type": "application/json"},
        )  # fmt: skip
        answer = await http.send(asked, stream=True)

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
        return StreamingResponse(parts(), answer.status_code, kept)

    return made


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
