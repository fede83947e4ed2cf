"""A service in an event loop: hooks are coroutines, everything is awaited."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from fdhandoff import HandoffError, Service
from fdhandoff.accept import protocol_handler

DIRECTORY = Path(sys.argv[1])
CONFIG = json.loads((DIRECTORY / "config.json").read_text())


def tell(*words: object) -> None:
    os.write(1, f"{os.getpid()} {' '.join(map(str, words))}\n".encode())


async def main() -> None:
    path = str(DIRECTORY / "handoff.sock")
    with Service("async", path=path, probation=CONFIG["probation"], log=lambda line: tell("log", line)) as service:
        if CONFIG.get("hooks"):
            for when, step in [
                ("before", "ready"),
                ("before", "commit"),
                ("after", "stop"),
                ("before", "SIGHUP"),
                ("before", "drain"),
            ]:

                async def hook(when: str = when, step: str = step) -> None:
                    await asyncio.sleep(0.01)
                    tell("hook", when, step, asyncio.get_running_loop().is_running())
                    if f"{when} {step}" in CONFIG.get("veto", []):
                        raise ValueError("not today")

                getattr(service, when)(step, hook)

        @service.on_state
        async def state() -> bytes:
            await asyncio.sleep(0)
            return b"made in the loop"

        listener = service.listen("main", CONFIG["listeners"]["main"])
        tell("listens", "main", json.dumps(listener.getsockname()).replace(" ", ""))
        if CONFIG.get("misbehave") == "boot:exit1":
            os._exit(1)
        await service.ready_async()
        tell("ready", service.generation.number)
        waiting = asyncio.create_task(service.wait_async())

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                answer = f"{service.generation.number} {os.getpid()} "
                if line == b"upgrade\n":
                    try:
                        answer = f"handed {(await service.upgrade_async()).generation.number}"
                    except HandoffError as error:
                        answer = f"{type(error).__name__} {error.serving} {error}"
                if line == b"block\n":
                    try:
                        service.upgrade()
                    except HandoffError as error:
                        answer = f"{type(error).__name__} {error}"
                if line == b"state\n":
                    answer = service.state.decode()
                writer.write(answer.encode() + b"\n")
                await writer.drain()
                if service.draining:
                    break
            writer.close()

        def protocol() -> asyncio.Protocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(), talk)

        tell("ends", await service.serve_async(protocol_handler(protocol)))
        assert await waiting == service.verdict
        report = await service.drain_async()
        tell("drained", report.finished, report.forced)
    tell("closed")


if __name__ == "__main__":
    asyncio.run(main())
