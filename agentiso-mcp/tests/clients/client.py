"""The official Python client against a real server.

    client.py stdio PROGRAM [ARGUMENT...]
    client.py http URL TOKEN
    client.py apart URL TOKEN TOKEN

The first two do everything a client does with one workspace; the last one has two clients at once that must not see
each other's. Prints "ok" at the end.
"""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager

from mcp import ClientSession, StdioServerParameters, stdio_client

MIB = 1024 * 1024


@asynccontextmanager
async def over_stdio(command):
    server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
    async with stdio_client(server) as (read, write):
        async with ClientSession(read, write) as session:
            await session.initialize()
            yield session


@asynccontextmanager
async def over_http(url, token):
    headers = {"Authorization": f"Bearer {token}"}
    try:
        # Version 2 takes an HTTP client, version 1 took headers.
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        transport = streamable_http_client(url, http_client=httpx2.AsyncClient(headers=headers, timeout=300))
    except ImportError:
        from mcp.client.streamable_http import streamablehttp_client

        transport = streamablehttp_client(url, headers=headers)
    async with transport as streams:
        async with ClientSession(streams[0], streams[1]) as session:
            await session.initialize()
            yield session


async def call(session, tool, expect_error=False, progress=None, **arguments):
    result = await session.call_tool(tool, arguments, progress_callback=progress)
    failed = getattr(result, "is_error", getattr(result, "isError", False))
    answer = json.loads(result.content[0].text)
    assert bool(failed) == expect_error, (tool, answer)
    return answer


async def everything(session):
    tools = {tool.name for tool in (await session.list_tools()).tools}
    assert {"workspace_create", "exec", "file_write", "workspace_fork", "git_status"} <= tools, tools
    told = []

    async def progress(done, total, message):
        told.append(message)

    made = await call(session, "workspace_create", memory_mb=256, disk_gb=4, progress=progress)
    workspace = made["workspace_id"]
    forks = []
    try:
        command = "echo out; echo err >&2; sleep 1; uname -s; exit 3"
        output = await call(session, "exec", workspace_id=workspace, command=command, progress=progress)
        assert output == {"exit_code": 3, "stdout": "out\nLinux\n", "stderr": "err\n"}, output
        assert any(message and "out" in message for message in told), told
        content = "0123456789abcde\n" * (5 * MIB // 16)
        written = await call(session, "file_write", workspace_id=workspace, path="/root/big", content=content)
        assert written["bytes_written"] == 5 * MIB, written
        # This client takes no event of more than 1 MiB.
        parts, offset = [], 0
        while offset is not None:
            read = await call(
                session, "file_read", workspace_id=workspace, path="/root/big", offset=offset, limit=MIB // 2
            )
            parts.append(read["content"])
            offset = read["next_offset"]
        assert "".join(parts) == content
        refused = await call(
            session, "file_write", True, workspace_id=workspace, path="/root/x", content="x" * (8 * MIB + 1)
        )
        assert "file_transfer" in refused["next_step"], refused
        start = "echo running > /root/state; sleep 1000"
        job = await call(session, "exec_background", workspace_id=workspace, action="start", command=start)
        forked = await call(session, "workspace_fork", workspace_id=workspace, count=1)
        forks = [worker["workspace_id"] for worker in forked["workers"]]
        assert len(forks) == 1, forked
        polled = await call(session, "exec_background", workspace_id=forks[0], action="poll", job_id=job["job_id"])
        assert polled["running"] is True, polled
        same = await call(session, "exec", workspace_id=forks[0], command="sha256sum < /root/big; cat /root/state")
        assert same["stdout"].endswith("running\n"), same
        if "AGENTISO_TRANSFER_DIR" in os.environ:
            await transfer(session, workspace)
        status = await call(session, "git_status", True, workspace_id=workspace)
        assert status["code"] == "invalid_request", status
        await call(session, "snapshot", workspace_id=workspace, action="create", name="s")
        console = await session.read_resource(f"agentiso://workspace/{workspace}/console")
        assert isinstance(console.contents[0].text, str), console
        await call(session, "exec", True, workspace_id="no-such-workspace", command="true")
    finally:
        for one in [*forks, workspace]:
            await call(session, "workspace_destroy", workspace_id=one)
    listed = await call(session, "workspace_list")
    assert workspace not in str(listed), listed


async def transfer(session, workspace):
    """There and back, with a file of any bytes."""
    folder = os.environ["AGENTISO_TRANSFER_DIR"]
    size = 20 * MIB
    with open(os.path.join(folder, "up"), "wb") as file:
        file.write(os.urandom(size))
    told = []

    async def progress(done, total, message):
        told.append((done, total))

    both = {"workspace_id": workspace, "guest_path": "/root/transferred"}
    up = await call(session, "file_transfer", progress=progress, direction="upload", host_path="up", **both)
    down = await call(session, "file_transfer", direction="download", host_path="down", **both)
    assert up["bytes"] == down["bytes"] == size, (up, down)
    assert all(total == size for _, total in told), told
    with open(os.path.join(folder, "up"), "rb") as sent, open(os.path.join(folder, "down"), "rb") as received:
        assert sent.read() == received.read()
    for path in ("../x", "/etc/passwd", "sub/../../x"):
        await call(session, "file_transfer", True, direction="upload", host_path=path, **both)


async def apart(url, one, two):
    async with over_http(url, one) as first, over_http(url, two) as second:
        sessions = [first, second]
        made = await asyncio.gather(*(call(it, "workspace_create", memory_mb=256, disk_gb=4) for it in sessions))
        ids = [it["workspace_id"] for it in made]
        try:
            for number, session in enumerate(sessions):
                listed = await call(session, "workspace_list")
                assert [it["workspace_id"] for it in listed["workspaces"]] == [ids[number]], listed
                other = ids[1 - number]
                for tool, more in (
                    ("exec", {"command": "true"}),
                    ("workspace_info", {}),
                    ("workspace_destroy", {}),
                    ("file_read", {"path": "/etc/passwd"}),
                    ("workspace_adopt", {}),
                ):
                    refused = await call(session, tool, True, workspace_id=other, **more)
                    assert "there is no workspace" in refused["message"], refused
        finally:
            for session, workspace in zip(sessions, ids):
                await call(session, "workspace_destroy", workspace_id=workspace)


async def main(how, *rest):
    if how == "stdio":
        async with over_stdio(rest) as session:
            await everything(session)
    elif how == "http":
        async with over_http(*rest) as session:
            await everything(session)
    else:
        await apart(*rest)
    print("ok")


asyncio.run(main(*sys.argv[1:]))
