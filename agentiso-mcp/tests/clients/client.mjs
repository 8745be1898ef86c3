// The official TypeScript client against a real server.
//
//     client.mjs stdio PROGRAM [ARGUMENT...]
//     client.mjs http URL TOKEN
//
// AGENTISO_MCP_NODE_MODULES is the node_modules folder that holds @modelcontextprotocol/sdk. Prints "ok" at the end.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.AGENTISO_MCP_NODE_MODULES}/`);
const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");

const MIB = 1024 * 1024;
const PATIENCE = { timeout: 300_000, resetTimeoutOnProgress: true };

const [how, ...rest] = process.argv.slice(2);
const transport =
  how === "stdio"
    ? new StdioClientTransport({ command: rest[0], args: rest.slice(1), env: process.env, stderr: "inherit" })
    : new StreamableHTTPClientTransport(new URL(rest[0]), {
        requestInit: { headers: { Authorization: `Bearer ${rest[1]}` } },
      });
const client = new Client({ name: "test", version: "0" });
await client.connect(transport);

async function call(name, args, { fails = false, onprogress } = {}) {
  const result = await client.callTool({ name, arguments: args }, undefined, { ...PATIENCE, onprogress });
  const answer = JSON.parse(result.content[0].text);
  assert.equal(result.isError ?? false, fails, `${name}: ${result.content[0].text}`);
  return answer;
}

const { tools } = await client.listTools();
assert(tools.some((tool) => tool.name === "workspace_fork"));
const told = [];
const onprogress = (progress) => told.push(progress.message ?? "");
const { workspace_id } = await call("workspace_create", { memory_mb: 256, disk_gb: 4 }, { onprogress });
let forks = [];
try {
  const command = "echo out; sleep 1; exit 3";
  const output = await call("exec", { workspace_id, command }, { onprogress });
  assert.deepEqual(output, { exit_code: 3, stdout: "out\n", stderr: "" });
  assert(told.some((message) => message.includes("out")), JSON.stringify(told));
  const content = "0123456789abcde\n".repeat((5 * MIB) / 16);
  const written = await call("file_write", { workspace_id, path: "/root/big", content });
  assert.equal(written.bytes_written, 5 * MIB);
  const read = await call("file_read", { workspace_id, path: "/root/big", limit: 8 * MIB });
  assert(read.content === content && read.next_offset === null);
  const forked = await call("workspace_fork", { workspace_id, count: 1 });
  forks = forked.workers.map((worker) => worker.workspace_id);
  const same = await call("exec", { workspace_id: forks[0], command: "wc -c < /root/big" });
  assert.equal(same.stdout.trim(), String(5 * MIB));
  const refused = await call("exec", { workspace_id, command: 7 }, { fails: true });
  assert.equal(refused.code, "invalid_params");
  await assert.rejects(client.callTool({ name: "no_such_tool", arguments: {} }));
} finally {
  for (const one of [...forks, workspace_id]) await call("workspace_destroy", { workspace_id: one });
}
await client.close();
console.log("ok");
