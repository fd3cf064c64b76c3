"""A small server of our own that speaks OpenAI's completions, over real HTTP on this computer."""

import asyncio
import json
from contextlib import asynccontextmanager

from aiohttp import web

KEY = "sk-very-secret"


class FakeServer:
    """Speaks OpenAI's completions; what it takes and says is set by the test."""

    def __init__(self):
        self.bodies = []
        self.pieces = ["hel", "lo"]
        self.takes_ids = self.takes_extensions = True
        self.status = 200
        self.miscounts = 0
        self.hold = None
        """An event for which a streamed answer waits after its first piece."""
        self.before = None
        """An event for which it waits before that."""
        self.left = 0
        self.raw = None

    @asynccontextmanager
    async def running(self):
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/circle/models", self.circle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            await runner.cleanup()

    async def models(self, _request):
        return web.json_response({"data": [{"id": "the-model"}]})

    async def circle(self, request):
        """Sends whoever asks to where they are."""
        raise web.HTTPFound(request.path)

    async def completions(self, request):
        body = await request.json()
        self.bodies.append(body)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": "no"}, status=401)
        refused = (isinstance(body["prompt"], list) and not self.takes_ids) or (
            "min_p" in body and not self.takes_extensions
        )
        if refused or self.status != 200:
            text = f"{{'error': 'not so, {KEY}'}}"
            return web.Response(status=400 if refused else self.status, text=text)
        if not body["stream"]:
            usage = {"prompt_tokens": len(body["prompt"]) + self.miscounts}
            return web.json_response({"choices": [{"text": "x"}], "usage": usage})
        return await self.streamed(request)

    async def streamed(self, request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if self.raw is not None:
            await response.write(self.raw)
            return response
        try:
            if self.before is not None:
                await self.before.wait()
            for number, piece in enumerate(self.pieces):
                data = json.dumps({"choices": [{"text": piece, "finish_reason": None}]})
                wire = f"data: {data}\n\n".encode()
                # Servers cut where they like, also in the middle of a character.
                await response.write(wire[:30])
                await asyncio.sleep(0)
                await response.write(wire[30:])
                if number == 0 and self.hold is not None:
                    await self.hold.wait()
            await response.write(b": a comment\n\ndata: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise
        return response
