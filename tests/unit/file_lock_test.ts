/**
 * Every function that opens a file for writing takes its lock and holds it until the close.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { closeFile, isOpenElsewhere, O_RDWR, openFile } from "../../ffi/files.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { registerFile } from "../../src/driver/aio.ts";
import type { FaultOwner } from "../../src/scheduler/faults.ts";
import { withoutLock } from "../../src/files/lock.ts";
import { osStorage } from "../../src/files/storage.ts";
import { withTempDir } from "../support/tools.ts";

type Opener = (path: string) => { close(): void };

const WRITERS: Readonly<Record<string, Opener>> = {
  "the disk queue": (path) => osDiskFiles.open(path, { readOnly: false, direct: false }),
  "the disk queue, past the page cache": (path) =>
    osDiskFiles.open(path, { readOnly: false, direct: true }),
  "offline work": (path) => osStorage.open(path, "write"),
  "offline work that replaces a file": (path) => osStorage.open(path, "create"),
};
const NEW_FILES: Readonly<Record<string, Opener>> = {
  "a file that is made": (path) => osStorage.open(path, "create-new"),
  "a file that is made or replaced": (path) => osStorage.open(path, "create"),
};
const READERS: Readonly<Record<string, Opener>> = {
  "the disk queue": (path) => osDiskFiles.open(path, { readOnly: true, direct: false }),
  "offline work": (path) => osStorage.open(path, "read"),
};

function assertBusy(open: () => unknown, what: string): void {
  assert.throws(
    open,
    (error) => error instanceof SystemError && error.errno === Errno.EBUSY,
    what,
  );
}

for (const [first, open] of Object.entries(WRITERS)) {
  Deno.test(`a file that ${first} has open for writing is EBUSY for other writers, not for readers`, () =>
    withTempDir((folder) => {
      const path = `${folder}/image`;
      Deno.writeTextFileSync(path, "x".repeat(4096));
      const holder = open(path);
      const content = Deno.readFileSync(path).length;
      for (const [second, openAgain] of Object.entries(WRITERS)) {
        assertBusy(() => openAgain(path), second);
      }
      assert.equal(Deno.readFileSync(path).length, content, "a refused writer changes nothing");
      for (const read of Object.values(READERS)) read(path).close();
      holder.close();
      for (const openAgain of Object.values(WRITERS)) openAgain(path).close();
      return Promise.resolve();
    }));
}

for (const [what, open] of Object.entries(NEW_FILES)) {
  Deno.test(`${what} has its lock from the start`, () =>
    withTempDir((folder) => {
      const path = `${folder}/image`;
      const holder = open(path);
      for (const [second, openAgain] of Object.entries(WRITERS)) {
        assertBusy(() => openAgain(path), second);
      }
      holder.close();
      return Promise.resolve();
    }));
}

Deno.test("who holds a file's lock by one descriptor opens that file by another, and no other file", () =>
  withTempDir((folder) => {
    const path = `${folder}/image`;
    Deno.writeTextFileSync(path, "x");
    const holder = osDiskFiles.open(path, { readOnly: false, direct: false });
    const lockedBy = holder.identity;
    osStorage.open(path, "write", { lockedBy }).close();
    Deno.renameSync(path, `${folder}/aside`);
    Deno.writeTextFileSync(path, "another");
    assert.throws(
      () => osStorage.open(path, "write", { lockedBy }),
      (error) => error instanceof SystemError && error.errno === Errno.ESTALE,
    );
    holder.close();
    return Promise.resolve();
  }));

Deno.test("a file that another descriptor has open is known, and one that none has", async () => {
  await withTempDir((folder) => {
    const path = `${folder}/file`;
    Deno.writeTextFileSync(path, "content");
    const file = Deno.openSync(path, { read: true });
    const fd = openFile(path, O_RDWR);
    assert.equal(isOpenElsewhere(fd), true);
    file.close();
    assert.equal(isOpenElsewhere(fd), false);
    assert.equal(isOpenElsewhere(fd), false, "the lease is given back");
    closeFile(fd);
  });
});

Deno.test("a file that has no lock, or goes through the page cache, is named in the log, a line each", () => {
  const log: string[] = [];
  const registered: (boolean | undefined)[] = [];
  const context = {
    queue: {
      register: (_file: number, _faults?: FaultOwner, isDirect?: boolean): void =>
        void registered.push(isDirect),
    },
    faults: { failed: false, fault(): void {} },
    log: (line: string): void => void log.push(line),
  };
  const file = { file: 7, path: "/sr/disk.vhd", cachedBecause: null, weakLock: null };
  registerFile(file, { direct: true }, context);
  assert.deepEqual(log, []);
  registerFile({ ...file, weakLock: withoutLock(Errno.ENOLCK) }, { direct: true }, context);
  assert.match(
    log.join("\n"),
    /^\/sr\/disk\.vhd is open for writing without a lock: [^\n]* no locks \(ENOLCK\); [^\n]*$/,
  );
  registerFile({ ...file, cachedBecause: "no O_DIRECT (EINVAL)" }, { direct: true }, context);
  assert.equal(log.length, 2);
  assert.match(log[1], /^\/sr\/disk\.vhd goes through the page cache: no O_DIRECT/);
  assert.deepEqual(registered, [true, true, false]);
});

Deno.test("a file is opened without a lock where there are no locks, and only there", () => {
  for (
    const [errno, name] of [[Errno.ENOLCK, "ENOLCK"], [Errno.EOPNOTSUPP, "EOPNOTSUPP"]] as const
  ) {
    assert.match(withoutLock(errno) ?? "", new RegExp(`^without a lock: .*\\(${name}\\)`));
  }
  assert.match(withoutLock(Errno.ENOSYS) ?? "", /\(ENOSYS\)/, "Lustre without flock");
  for (const errno of [Errno.EIO, Errno.EBADF, Errno.EINTR, Errno.EAGAIN]) {
    assert.equal(withoutLock(errno), null);
  }
});
