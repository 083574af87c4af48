/**
 * Who may reach files, sockets and folders, and which files are never opened.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import {
  closeFile,
  O_RDONLY,
  O_WRONLY,
  openFile,
  readAt,
  tryLockExclusive,
  writeAt,
} from "../../ffi/files.ts";
import { unixListen } from "../../ffi/sockets.ts";
import { recoverDevice } from "../../src/control/client/lifecycle.ts";
import { writeMinorRecord } from "../../src/control/minors/minor_record.ts";
import { allocateMinor, freeMinor, holdMinor } from "../../src/control/minors/minors.ts";
import { minorsFolder, requireOwnFolder } from "../../src/control/paths.ts";
import { OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import { osStorage } from "../../src/files/storage.ts";
import { FileSink } from "../../src/log/file_sink.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { findTool, hasTool, runOk, withTempDir } from "../support/tools.ts";

const isRoot = Deno.uid() === 0;

function isErrno(errno: number): (error: unknown) => boolean {
  return (error) => error instanceof SystemError && error.errno === errno;
}

/** Calls `body` with a control folder of its own. */
async function withControlFolder(body: (folder: string) => unknown): Promise<void> {
  const before = Deno.env.get("BLKTAP_CONTROL_DIR");
  await withTempDir(async (folder) => {
    Deno.env.set("BLKTAP_CONTROL_DIR", `${folder}/control`);
    try {
      await body(`${folder}/control`);
    } finally {
      if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
      else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    }
  });
}

Deno.test("new images are their owner's and, for reading, their group's", () =>
  withTempDir((folder) => {
    const umask = Deno.umask(0);
    try {
      osStorage.open(`${folder}/new`, "create-new").close();
      osStorage.open(`${folder}/made`, "create").close();
    } finally {
      Deno.umask(umask);
    }
    for (const name of ["new", "made"]) {
      assert.equal((Deno.statSync(`${folder}/${name}`).mode ?? 0) & 0o777, 0o640, name);
    }
    return Promise.resolve();
  }));

Deno.test("sockets, minors and their folder are their owner's alone, whatever the umask", () =>
  withControlFolder((folder) => {
    const umask = Deno.umask(0);
    try {
      assert.equal(allocateMinor(), 0);
      closeFile(unixListen(`${folder}/socket`));
    } finally {
      Deno.umask(umask);
    }
    const modeOf = (path: string): number => (Deno.statSync(path).mode ?? 0) & 0o777;
    assert.equal(modeOf(`${folder}/socket`), 0o600);
    assert.equal(modeOf(`${folder}/tapdisk/tapdisk-0`), 0o600);
    assert.deepEqual([folder, `${folder}/tapdisk`].map(modeOf), [0o700, 0o700]);
  }));

Deno.test("what is neither a file nor a block device is refused, and not waited for", () =>
  withTempDir(async (folder) => {
    const fifo = `${folder}/fifo`;
    await runOk("mkfifo", [fifo]);
    for (const path of [fifo, "/dev/null", "/dev/zero"]) {
      assert.throws(() => osStorage.open(path, "read"), isErrno(Errno.EINVAL), path);
      assert.throws(() => osStorage.open(path, "write"), isErrno(Errno.EINVAL), path);
      for (const readOnly of [true, false]) {
        const open = (): unknown => osDiskFiles.open(path, { readOnly, direct: false });
        assert.throws(open, isErrno(Errno.EINVAL), path);
      }
    }
    assert.throws(() => osStorage.open(folder, "write"), isErrno(Errno.EISDIR));
  }));

Deno.test("a write that the disk has no room for is an error", () => {
  const full = openFile("/dev/full", O_WRONLY);
  assert.throws(() => writeAt(full, new Uint8Array(512), 0), isErrno(Errno.ENOSPC));
  closeFile(full);
});

Deno.test("a read says how much there was before the end of the file", () =>
  withTempDir((folder) => {
    Deno.writeTextFileSync(`${folder}/file`, "x".repeat(600));
    const fd = openFile(`${folder}/file`, O_RDONLY);
    const bytes = new Uint8Array(512);
    assert.deepEqual([0, 100, 599, 600, 9000].map((at) => readAt(fd, bytes, at)), [
      512,
      500,
      1,
      0,
      0,
    ]);
    closeFile(fd);
    return Promise.resolve();
  }));

Deno.test("a file that a tapdisk reads is not changed by what discards or moves data", () =>
  withTempDir(async (folder) => {
    const [program, path] = [`${folder}/tapdisk`, `${folder}/image`];
    Deno.copyFileSync(findTool("cat") ?? "/bin/cat", program);
    Deno.chmodSync(program, 0o700);
    Deno.writeTextFileSync(path, "x".repeat(512));
    const file = osStorage.open(path, "write");
    file.refuseReaders();
    // A process of that name with the file open; it waits for its input.
    const reader = new Deno.Command("/bin/sh", {
      args: ["-c", `exec "${program}" - 3<"${path}"`],
      stdin: "piped",
      stdout: "null",
    }).spawn();
    try {
      const refused = (): boolean => {
        try {
          file.refuseReaders();
          return false;
        } catch (error) {
          assert.ok(isErrno(Errno.EBUSY)(error));
          return true;
        }
      };
      let isRefused = refused();
      for (let tries = 0; tries < 3000 && !isRefused; tries++) {
        await new Promise((resolve) => setTimeout(resolve, 10));
        isRefused = refused();
      }
      assert.ok(isRefused, "the reader is seen");
    } finally {
      await reader.stdin.close();
      await reader.status;
    }
    file.refuseReaders();
    file.close();
  }));

Deno.test("the log is not written through a link", () =>
  withTempDir((folder) => {
    Deno.writeTextFileSync(`${folder}/victim`, "as it was");
    Deno.symlinkSync(`${folder}/victim`, `${folder}/log`);
    assert.throws(() => new FileSink(`${folder}/log`, "test"), isErrno(Errno.ELOOP));
    assert.equal(Deno.readTextFileSync(`${folder}/victim`), "as it was");
    return Promise.resolve();
  }));

Deno.test("a control folder that others can change is refused", () =>
  withControlFolder((folder) => {
    requireOwnFolder();
    allocateMinor();
    requireOwnFolder();
    for (const mode of [0o770, 0o702, 0o777, 0o1777]) {
      Deno.chmodSync(folder, mode);
      assert.throws(() => requireOwnFolder(), isErrno(Errno.EPERM), mode.toString(8));
    }
    Deno.chmodSync(folder, 0o755);
    requireOwnFolder();
  }));

Deno.test({
  name: "a control folder of another user is refused, also behind a link",
  ignore: !isRoot,
  fn: () =>
    withControlFolder((folder) => {
      allocateMinor();
      Deno.chownSync(folder, 12345, 0);
      assert.throws(() => requireOwnFolder(), isErrno(Errno.EPERM));
      Deno.chownSync(folder, 0, 0);
      requireOwnFolder();
      Deno.symlinkSync(folder, `${folder}.link`);
      requireOwnFolder(`${folder}.link`);
      Deno.chownSync(folder, 12345, 0);
      assert.throws(() => requireOwnFolder(`${folder}.link`), isErrno(Errno.EPERM));
    }),
});

/** Whether nobody has the lock of a folder. */
function isFree(folder: string): boolean {
  const fd = openFile(folder, O_RDONLY);
  try {
    return tryLockExclusive(fd);
  } finally {
    closeFile(fd);
  }
}

Deno.test({
  name: "a minor is chosen under the lock of their folder",
  ignore: !hasTool("flock"),
  fn: () =>
    withControlFolder(async (folder) => {
      assert.equal(allocateMinor(), 0);
      const other = new Deno.Command("flock", {
        args: [minorsFolder(), "-c", `sleep 0.3; touch "${folder}/tapdisk/tapdisk-1"`],
      }).spawn();
      while (isFree(minorsFolder())) await new Promise((resolve) => setTimeout(resolve, 5));
      assert.equal(allocateMinor(), 2, "it waited until the other had chosen");
      await other.status;
    }),
});

Deno.test("the block device of a tapdisk that is alive is not taken over", () =>
  withControlFolder(async () => {
    const minor = allocateMinor();
    const held = holdMinor(minor);
    const node = "/dev/null";
    writeMinorRecord(minor, { ...OPEN_DEFAULTS, image: "ram:1", node, encrypted: false });
    await assert.rejects(recoverDevice(minor), isErrno(Errno.EBUSY));
    assert.throws(() => freeMinor(minor), isErrno(Errno.EAGAIN));
    closeFile(held);
    writeMinorRecord(minor, null);
    freeMinor(minor);
  }));
