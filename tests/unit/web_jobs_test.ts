/** Work of `blktap web` in processes of its own: bounded, and stopped when it takes too long. */
import assert from "node:assert/strict";
import { Jobs } from "../../src/web/jobs.ts";

/** A process that does what a shell script says; standard input is the work. */
function jobsOf(script: string): Jobs {
  return new Jobs({ program: "/bin/sh", args: ["-c", script] });
}

const LONG_MS = 60_000;

Deno.test("web: a process gets its work, and its answer comes back", async () => {
  const jobs = jobsOf(`printf '{"result":'; cat; printf '}'`);
  const request = { kind: "chain", image: "vhd:/ü.vhd" };
  assert.deepEqual(await jobs.run({ request, timeoutMs: LONG_MS }), request);
});

Deno.test("web: an error that a process answers is an error here", async () => {
  const jobs = jobsOf(`cat >/dev/null; printf '{"errno":2,"error":"Cannot open x"}'`);
  await assert.rejects(jobs.run({ request: 1, timeoutMs: LONG_MS }), {
    errno: 2,
    message: "Cannot open x",
  });
});

Deno.test("web: a process that ends without an answer is an error", async () => {
  for (const script of ["exit 1", "cat", "printf '[]'", "kill -9 $$"]) {
    await assert.rejects(
      jobsOf(script).run({ request: 1, timeoutMs: LONG_MS }),
      /without one/,
      script,
    );
  }
  await assert.rejects(
    new Jobs({ program: "/nothing", args: [] }).run({ request: 1, timeoutMs: LONG_MS }),
    /Cannot start \/nothing.*ENOENT/,
  );
});

Deno.test("web: a process that takes too long is killed, and its place is free again", async () => {
  const jobs = jobsOf(
    `read -r x; case $x in *hang*) exec sleep 600;; *) printf '{"result":1}';; esac`,
  );
  const hung = Array.from({ length: 3 }, () => jobs.run({ request: "hang", timeoutMs: 300 }));
  const next = jobs.run({ request: "well", timeoutMs: LONG_MS });
  for (const each of hung) await assert.rejects(each, { code: "ETIMEDOUT" });
  assert.equal(await next, 1);
  // What waits for a place does not wait for ever either.
  const long = Array.from({ length: 3 }, () => jobs.run({ request: "hang", timeoutMs: LONG_MS }));
  const ends = Promise.allSettled(long);
  await assert.rejects(jobs.run({ request: "well", timeoutMs: 300 }), { code: "ETIMEDOUT" });
  await jobs.close();
  for (const { status } of await ends) assert.equal(status, "rejected");
});

Deno.test("web: at most three work at once, and what waits is bounded", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const script = `cat >/dev/null; mkdir ${folder}/$$; ls ${folder} | wc -l >>${folder}.log
while [ ! -e ${folder}/go ]; do sleep 0.05; done; rmdir ${folder}/$$; printf '{"result":1}'`;
    const jobs = jobsOf(script);
    const all = Array.from({ length: 19 }, () => jobs.run({ request: 1, timeoutMs: LONG_MS }));
    await assert.rejects(jobs.run({ request: 1, timeoutMs: LONG_MS }), { code: "EBUSY" });
    Deno.writeTextFileSync(`${folder}/go`, "");
    assert.deepEqual(await Promise.all(all), all.map(() => 1));
    // The file `go` counts as one, too.
    const counts = Deno.readTextFileSync(`${folder}.log`).trim().split("\n").map(Number);
    assert.equal(counts.length, 19);
    assert.ok(Math.max(...counts) <= 4, counts.join(" "));
  } finally {
    Deno.removeSync(folder, { recursive: true });
    Deno.removeSync(`${folder}.log`);
  }
});

Deno.test("web: an answer without an end is cut off", async () => {
  const jobs = jobsOf("cat >/dev/null; exec yes");
  await assert.rejects(jobs.run({ request: 1, timeoutMs: LONG_MS }), { code: "EFBIG" });
  await jobs.close();
});
