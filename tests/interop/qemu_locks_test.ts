/** A file that is open for writing here is not written by QEMU's programs, and the other way round. */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { osStorage } from "../../src/files/storage.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("qemu-img", "qemu-io");
const OPENERS = {
  "the disk queue": (path: string) => osDiskFiles.open(path, { readOnly: false, direct: true }),
  "offline work": (path: string) => osStorage.open(path, "write"),
};

for (const [name, open] of Object.entries(OPENERS)) {
  for (const format of ["qcow2", "vpc", "raw"]) {
    Deno.test({
      name: `QEMU reads and does not write a ${format} that ${name} writes${suffix}`,
      ignore,
      fn: () =>
        withTempDir(async (folder) => {
          const path = `${folder}/a`;
          await runOk("qemu-img", ["create", "-q", "-f", format, path, "4M"]);
          const file = open(path);
          const writing = await run("qemu-io", ["-f", format, "-c", "write 0 4k", path]);
          assert.notEqual(writing.code, 0);
          assert.match(writing.stderr, /Failed to get .*lock/);
          await runOk("qemu-img", ["info", "-f", format, path]);
          if (format === "qcow2") await runOk("qemu-img", ["check", path]);
          file.close();
          await runOk("qemu-io", ["-f", format, "-c", "write 0 4k", path]);
        }),
    });

    Deno.test({
      name: `${name} does not write a ${format} that QEMU writes${suffix}`,
      ignore,
      fn: () =>
        withTempDir(async (folder) => {
          const path = `${folder}/a`;
          await runOk("qemu-img", ["create", "-q", "-f", format, path, "4M"]);
          const qemu = new Deno.Command("qemu-io", {
            args: ["-f", format, path],
            stdin: "piped",
            stdout: "piped",
          }).spawn();
          const output = qemu.stdout.getReader();
          const input = qemu.stdin.getWriter();
          await input.write(new TextEncoder().encode("write 0 4k\n"));
          for (let text = ""; !text.includes("wrote");) {
            const { value, done } = await output.read();
            assert.ok(!done, text);
            text += new TextDecoder().decode(value);
          }
          assert.throws(() => open(path), (error) => {
            assert.ok(error instanceof SystemError);
            assert.equal(error.errno, Errno.EBUSY);
            assert.match(
              error.message,
              new RegExp(`qemu-io \\(process ${qemu.pid}\\) has it open`),
            );
            return true;
          });
          await input.close();
          await output.cancel();
          await qemu.status;
          open(path).close();
        }),
    });
  }
}
