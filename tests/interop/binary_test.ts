import { Buffer } from "node:buffer";
import assert from "node:assert/strict";
import config from "../../deno.json" with { type: "json" };
import { Errno } from "../../ffi/errno.ts";
import { binaryPath, needs, run, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("dist/blktap", "dist/tapdisk", "dist/tap-ctl", "dist/vhd-util");
const blktap = binaryPath("blktap");

function binaryTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: `binary: ${name}${suffix}`, ignore, fn });
}

binaryTest("--version names its version and the Deno that it carries", async () => {
  const { code, stdout, stderr } = await run(blktap, ["--version"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  assert.match(stdout, /^blktap \S+ \(Deno \S+, V8 \S+\)\n$/);
  assert.ok(stdout.startsWith(`blktap ${config.version} (Deno ${Deno.version.deno},`), stdout);
});

binaryTest("--help names the three commands", async () => {
  const help = await runOk(blktap, ["--help"]);
  assert.equal(await runOk(blktap, ["help"]), help);
  for (const command of ["tapdisk", "tap-ctl", "vhd-util"]) {
    assert.match(help, new RegExp(`^  ${command} `, "m"));
  }
});

binaryTest("no command, and one that there is not, are EINVAL, said on stderr", async () => {
  const none = await run(blktap, []);
  assert.equal(none.code, Errno.EINVAL);
  assert.equal(none.stdout, "");
  assert.match(none.stderr, /No command/);
  const unknown = await run(blktap, ["vhdutil", "query"]);
  assert.equal(unknown.code, Errno.EINVAL);
  assert.equal(unknown.stdout, "");
  assert.match(unknown.stderr, /Unknown command 'vhdutil'/);
});

binaryTest("is the same command by its link, by a link on PATH and by its argument", async () => {
  await withTempDir(async (folder) => {
    const image = `${folder}/disk.vhd`;
    await runOk(binaryPath("vhd-util"), ["create", "-n", image, "-s", "10"]);
    const query = ["query", "-v", "-n", image];
    assert.equal(await runOk(binaryPath("vhd-util"), query), "10\n");
    assert.equal(await runOk(blktap, ["vhd-util", ...query]), "10\n");

    Deno.symlinkSync(blktap, `${folder}/vhd-util`);
    const onPath = { env: { PATH: `${folder}:/usr/bin:/bin` } };
    const shell = await run("/bin/sh", ["-c", `vhd-util query -v -n '${image}'`], onPath);
    assert.deepEqual(shell, { code: 0, stdout: "10\n", stderr: "" });
  });
});

binaryTest("the status of a command is the status of the process", async () => {
  await withTempDir(async (folder) => {
    const query = ["query", "-v", "-n", `${folder}/missing.vhd`];
    const byName = await run(binaryPath("vhd-util"), query);
    assert.equal(byName.code, Errno.ENOENT);
    assert.deepEqual(await run(blktap, ["vhd-util", ...query]), byName);
  });
});

binaryTest("a reader that goes away ends it without a stack trace", async () => {
  const script = `{ sleep 0.2; '${blktap}' --help; echo "status $?" >&2; } | true`;
  const { stderr } = await run("/bin/bash", ["-c", script]);
  assert.match(stderr, /^status (0|141)\n$/);
});

binaryTest("a stream whose reader has gone ends, and one that finds no room says so", async () => {
  await withTempDir(async (folder) => {
    const image = `qcow2:${folder}/disk.qcow2`;
    const [tdUtil, stream] = [binaryPath("td-util"), binaryPath("tapdisk-stream")];
    const made = await run(tdUtil, ["create", image, "1Gi"]);
    assert.equal(made.code, 0, made.stderr);
    for (const command of [`'${tdUtil}' stream '${image}'`, `'${stream}' -n '${image}'`]) {
      const piped = await run("/bin/bash", ["-c", `{ ${command}; echo "status $?" >&2; } | true`]);
      assert.equal(piped.stderr, "status 141\n");
      const full = await run("/bin/bash", ["-c", `${command} > /dev/full`]);
      const why = "Cannot write to standard output: No space left on device (ENOSPC)\n";
      assert.deepEqual([full.code, full.stderr], [Errno.ENOSPC, why]);
    }
  });
});

/** What `deno compile` embedded in the binary. Its last 16 bytes end with the length of that. */
function embeddedText(): string {
  using file = Deno.openSync(blktap);
  file.seekSync(-8, Deno.SeekMode.End);
  const length = new Uint8Array(8);
  assert.equal(file.readSync(length), 8);
  const size = Number(new DataView(length.buffer).getBigUint64(0, true));
  assert.ok(size < 100_000_000, `${size} bytes are embedded`);
  file.seekSync(-16 - size, Deno.SeekMode.End);
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size;) at += file.readSync(bytes.subarray(at)) ?? assert.fail("cut");
  return bytes.toString("latin1");
}

binaryTest(
  "what each run reads before it begins is small, and functions have names for stacks",
  () => {
    const text = embeddedText();
    assert.ok(
      text.length > 500_000 && text.length < 2_600_000,
      `${text.length} bytes are embedded`,
    );
    // In turn: the whole program, its classes, a part of it, a quick call, and what is before all.
    for (
      const name of ["runProgram", "SystemError", "startTapdisk", "quickCommand", "chooseCall"]
    ) {
      assert.ok(text.includes(`"${name}")`), `${name} has lost its name`);
    }
    return Promise.resolve();
  },
);
