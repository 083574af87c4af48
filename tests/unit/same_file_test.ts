/** Whether a name still leads to the file that is open. */
import assert from "node:assert/strict";
import { AssertionError } from "../../ffi/assert.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { lastKnown } from "../../ffi/file_handle.ts";
import { closeFile, fileStatus, O_RDWR, openFile } from "../../ffi/files.ts";
import {
  knownOf,
  type NotedFile,
  noteFile,
  openByName,
  placeOf,
  whyNotSame,
} from "../../src/files/same_file.ts";
import { type DiskFile, osDiskFiles } from "../../src/queue/disk_files.ts";
import { OpenedFiles } from "../../src/vbd/opened_files.ts";
import { runOk, withTempDir } from "../support/tools.ts";

/** An open file, and the name that it was opened by. */
interface Subject extends Omit<NotedFile, "before"> {
  readonly path: string;
  /** -1: the kernel tells nothing of it any more. */
  readonly fd: number;
}

/** What tells of the file of a name; see `whyNotSame`. */
async function whyNot({ path, fd, ...file }: Subject): Promise<string | null> {
  const before = fd < 0 ? null : knownOf(fd, path, placeOf(fd));
  return whyNotSame(await openByName(path), { ...file, before });
}

/** Runs with an open file of 8 KiB, which has a handle where the filesystem has any. */
function withFile(run: (file: Subject, folder: string) => Promise<void>): Promise<void> {
  return withTempDir(async (folder) => {
    const path = `${folder}/disk.vhd`;
    Deno.writeFileSync(path, new Uint8Array(8192));
    const fd = openFile(path, O_RDWR);
    try {
      await run({ path, fd, note: noteFile(fd, fileStatus(fd)), mayHaveChanged: true }, folder);
    } finally {
      closeFile(fd);
    }
  });
}

Deno.test("the same file is the same, also when it is written, longer, or renamed and back", () =>
  withFile(async (file, folder) => {
    assert.equal(await whyNot(file), null);
    Deno.writeFileSync(file.path, new Uint8Array(512), { append: true });
    assert.equal(await whyNot(file), null);
    Deno.renameSync(file.path, `${folder}/aside`);
    assert.equal(await whyNot(file), "cannot be opened");
    Deno.renameSync(`${folder}/aside`, file.path);
    assert.equal(await whyNot(file), null);
  }));

Deno.test("a copy under the name is another file", () =>
  withFile(async (file, folder) => {
    await runOk("cp", ["-a", file.path, `${folder}/copy`]);
    Deno.renameSync(`${folder}/copy`, file.path);
    assert.equal(await whyNot(file), "is another file now");
  }));

Deno.test("a new file that gets the inode number of a removed one has another handle", () =>
  withFile(async (file) => {
    assert.ok(file.note !== null, "no handles on this filesystem");
    const note = { ...file.note, handle: "1:00" };
    assert.equal(await whyNot({ ...file, note }), "has another handle now");
  }));

Deno.test("a file that is opened without asking its server is not provably the same", () =>
  withFile(async (file) => {
    assert.ok(file.note !== null, "no handles on this filesystem");
    const note = { ...file.note, isOpenedUnasked: true };
    assert.match(await whyNot({ ...file, note }) ?? "", /a mount with nocto/);
  }));

Deno.test("a file that was put back to an earlier state is not the same", () =>
  withFile(async (file) => {
    assert.ok(file.note !== null, "no handles on this filesystem");
    const { note } = file;
    const { known } = note;
    const { sizeBytes, changed: [seconds, nanoseconds] } = known;
    // The kernel tells nothing of the open file any more: what was noted counts.
    const because = (sizeBytes: number, ...changed: [number, number]): Promise<string | null> =>
      whyNot({ ...file, fd: -1, note: { ...note, known: { ...known, sizeBytes, changed } } });
    assert.equal(await because(sizeBytes, seconds, nanoseconds), null);
    assert.match(await because(9000, seconds, 0) ?? "", /has 8192 .*had 9000/);
    const earlier = "is what it was at an earlier time";
    assert.equal(await because(sizeBytes, seconds, nanoseconds + 1), earlier);
    assert.equal(await because(sizeBytes, seconds + 1, 0), earlier);
    assert.equal(await because(512, seconds - 1, 999_999_999), null);
    // What the kernel tells of the open file counts more than what was noted.
    Deno.writeFileSync(file.path, new Uint8Array(512), { append: true });
    assert.equal(lastKnown(file.fd).sizeBytes, 8704);
  }));

Deno.test("a file that nobody heard of for long is the same only if it was not changed", () =>
  withFile(async (file) => {
    assert.ok(file.note !== null, "no handles on this filesystem");
    const { note } = file;
    const { known } = note;
    const changed = [known.changed[0] - 1, known.changed[1]] as const;
    const older = { ...file, fd: -1, note: { ...note, known: { ...known, changed } } };
    assert.equal(await whyNot(older), null);
    assert.match(await whyNot({ ...older, mayHaveChanged: false }) ?? "", /was changed, perhaps/);
    assert.equal(await whyNot({ ...file, mayHaveChanged: false }), null);
  }));

/** What is found of an open file that was last heard of at 0 ms. */
function findAgain(file: DiskFile, mayHaveChanged: boolean): Promise<string | null> {
  const settle = <T>(promise: Promise<T>, callback: (value: T) => void): void =>
    void promise.then(callback);
  return new Promise((found) => file.findAgain({ settle }, { heardMs: 0, mayHaveChanged }, found));
}

Deno.test("a file is compared with what was known before the first lookup, not with itself", () =>
  withTempDir(async (folder) => {
    const path = `${folder}/disk.vhd`;
    Deno.writeFileSync(path, new Uint8Array(8192));
    const file = osDiskFiles.open(path, { readOnly: false, direct: false });
    assert.equal(await findAgain(file, false), null);
    // Here all descriptors of a file show its present state, as on NFS after a lookup.
    await new Promise((wake) => setTimeout(wake, 20));
    Deno.writeFileSync(path, new Uint8Array(512), { append: true });
    for (let lookup = 0; lookup < 2; lookup++) {
      assert.match(await findAgain(file, false) ?? "", /was changed, perhaps/);
      assert.equal(await findAgain(file, true), null);
    }
    file.close();
  }));

Deno.test("a file that is older than when it was opened is not the same, whatever the kernel tells now", () =>
  withFile(async (file) => {
    assert.ok(file.note !== null, "no handles on this filesystem");
    const { note } = file;
    const { known } = note;
    const changed = [known.changed[0] + 1, known.changed[1]] as const;
    const later = { ...file, note: { ...note, known: { ...known, changed } } };
    assert.equal(await whyNot(later), "is what it was at an earlier time");
  }));

Deno.test("a descriptor that something else has closed is a fault, and is not closed again", () =>
  withTempDir((folder) => {
    for (const name of ["a", "b"]) Deno.writeFileSync(`${folder}/${name}`, new Uint8Array(4096));
    const options = { readOnly: false, direct: false };
    const file = osDiskFiles.open(`${folder}/a`, options);
    file.requireOwn();
    closeFile(file.file);
    const other = osDiskFiles.open(`${folder}/b`, options);
    assert.equal(other.file, file.file);
    assert.throws(() => file.requireOwn(), AssertionError);
    file.close();
    assert.equal(other.sizeBytes(), 4096);
    closeFile(other.file);
    assert.throws(() => other.requireOwn(), AssertionError);
    other.close();
    return Promise.resolve();
  }));

Deno.test("what is no file, or has no handle, is not the same; a FIFO is not waited for", () =>
  withFile(async (file) => {
    assert.match(await whyNot({ ...file, note: null }) ?? "", /has no handle/);
    Deno.removeSync(file.path);
    await runOk("mkfifo", [file.path]);
    assert.equal(await whyNot(file), "is another file now");
    assert.equal(noteFile(-1, { ...fileStatus(file.fd), kind: "block" }), null);
  }));

Deno.test("files that are opened anew must be those that were open, by the same names", () =>
  withTempDir(async (folder) => {
    const [a, b] = [`${folder}/a`, `${folder}/b`];
    for (const path of [a, b]) Deno.writeFileSync(path, new Uint8Array(4096));
    const options = { readOnly: true, direct: false };
    const scheduler = {
      nowMs: () => 100_000,
      settle: <T>(promise: Promise<T>, callback: (value: T) => void): void =>
        void promise.then(callback),
    };
    const whyNotAgain = (files: OpenedFiles, heardMs: number): Promise<string | null> =>
      new Promise((found) => files.findAgain(scheduler, () => heardMs, found));
    const first = new OpenedFiles(osDiskFiles);
    assert.equal(await whyNotAgain(first, 0), "it has no files");
    const opened = first.open(a, options);
    assert.equal(await whyNotAgain(first, 0), null);
    assert.equal(first.stray, null);
    const again = new OpenedFiles(osDiskFiles, first);
    again.open(a, options).close();
    const isStale = (error: unknown): boolean =>
      error instanceof SystemError && error.errno === Errno.ESTALE;
    assert.throws(() => again.open(b, options), isStale);
    Deno.renameSync(b, a);
    assert.throws(() => again.open(a, options), isStale);
    assert.match(await whyNotAgain(first, 0) ?? "", /another file now/);
    assert.equal(first.stray, null, "it is only read");
    opened.close();
    const written = new OpenedFiles(osDiskFiles);
    const cached = written.open(a, { readOnly: false, direct: false });
    assert.match(await whyNotAgain(written, 0) ?? "", /page cache/);
    assert.equal(written.stray, null);
    Deno.renameSync(a, b);
    assert.equal(written.stray, a);
    Deno.writeFileSync(a, new Uint8Array(4096));
    assert.equal(written.stray, a);
    Deno.renameSync(b, a);
    assert.equal(written.stray, null);
    cached.close();
  }));
