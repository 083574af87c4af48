/** Who gave an order: what is said of a process at the other end of a control connection. */
import assert from "node:assert/strict";
import { closeFile } from "../../ffi/files.ts";
import { socketPair } from "../../ffi/sockets.ts";
import { actorAt, actorText } from "../../src/control/daemon/actor.ts";

Deno.test("an order's origin is named by programs, and not by their command lines", () => {
  const [one, other] = socketPair();
  const actor = actorAt(one);
  closeFile(one);
  closeFile(other);
  assert.equal(actor?.pid, Deno.pid);
  const name = Deno.readTextFileSync("/proc/self/comm").trim();
  const parent = Deno.readTextFileSync(`/proc/${Deno.ppid}/comm`).trim();
  assert.equal(actor.command, name);
  assert.deepEqual(actor.parent, Deno.ppid > 1 ? { pid: Deno.ppid, command: parent } : null);
  const by = Deno.ppid > 1 ? `, started by process ${Deno.ppid}: ${parent}` : "";
  assert.equal(actorText(actor), `${name} (process ${Deno.pid}${by})`);
});
