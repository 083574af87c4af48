import assert from "node:assert/strict";
import { describeProcesses, killTree, processes, treeOf } from "../../scripts/processes.ts";
import { run } from "../support/tools.ts";
import { waitUntil } from "../support/served.ts";

/** A shell with a child that keeps its output open. */
const NESTED = ["-c", "sleep 100 & sleep 200; true"];

Deno.test("processes: a tree is a process and what it started, and can be killed", async () => {
  const child = new Deno.Command("sh", { args: NESTED }).spawn();
  await waitUntil(() => treeOf(child.pid).length === 3, "the shell has started its children");
  const tree = treeOf(child.pid);
  assert.match(describeProcesses(tree), /sleep 100\n(.*\n)*.*sleep 200$/m);
  killTree(child.pid);
  assert.equal((await child.status).signal, "SIGKILL");
  const pids = tree.map(({ pid }) => pid);
  const left = (): boolean =>
    processes().some(({ pid, state }) => pids.includes(pid) && state !== "Z");
  await waitUntil(() => !left(), "all of them have ended");
});

Deno.test("processes: a program that hangs is killed with its children, and is told of", async () => {
  const startMs = performance.now();
  await assert.rejects(run("sh", NESTED, { timeoutMs: 300 }), {
    message: /^Stopped sh -c .* after 300 ms\n(.*\n)*.*: sleep 200\n/,
  });
  assert.ok(performance.now() - startMs < 60_000, "the output of the child was not waited for");
});

Deno.test("processes: a program that left its output to a daemon is given up in time", async () => {
  const daemon = "(setsid sleep 6 &); sleep 100";
  await assert.rejects(run("sh", ["-c", daemon], { timeoutMs: 300 }), /Stopped sh/);
});
