/** A file of which a few bytes are written to the page cache on the data path. */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { closeFile, O_RDONLY, O_RDWR, openFile, writeLow } from "../../ffi/files.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { withTempDir } from "../support/tools.ts";

const LENGTH_BYTES = 9000;

Deno.test("cached file: a write changes its bytes and no others, and is seen at once", () =>
  withTempDir((folder) => {
    const path = `${folder}/log`;
    Deno.writeFileSync(path, new Uint8Array(LENGTH_BYTES).fill(1));
    const file = osDiskFiles.openCached(path);
    assert.equal(file.write(new Uint8Array([5, 6, 7]), 2, 4095), 0);
    const wanted = new Uint8Array(LENGTH_BYTES).fill(1);
    wanted.set([5, 6], 4095);
    assert.deepEqual(Deno.readFileSync(path), wanted);
    const bytes = new Uint8Array(4);
    assert.deepEqual([file.readAt(bytes, 4094), ...bytes], [4, 1, 5, 6, 1]);
    file.close();
  }));

Deno.test("cached file: one that was cut meanwhile is lengthened again, and its new room is zeros", () =>
  withTempDir((folder) => {
    const path = `${folder}/log`;
    Deno.writeFileSync(path, new Uint8Array(LENGTH_BYTES).fill(1));
    const file = osDiskFiles.openCached(path);
    Deno.truncateSync(path, 1);
    assert.equal(file.write(new Uint8Array([9]), 1, 6000), 0);
    const wanted = new Uint8Array(6001);
    wanted.set([1], 0);
    wanted.set([9], 6000);
    assert.deepEqual(Deno.readFileSync(path), wanted);
    file.close();
  }));

Deno.test("cached file: room is set aside for it, and its bytes stay", () =>
  withTempDir((folder) => {
    const path = `${folder}/log`;
    Deno.writeFileSync(path, new Uint8Array([1, 2, 3]));
    Deno.truncateSync(path, 1 << 20);
    const before = Deno.statSync(path).blocks ?? 0;
    const file = osDiskFiles.openCached(path);
    file.allocate(1 << 20);
    assert.ok((Deno.statSync(path).blocks ?? 0) >= before + 1000);
    assert.deepEqual(Deno.readFileSync(path).subarray(0, 4), new Uint8Array([1, 2, 3, 0]));
    assert.throws(() => osDiskFiles.openCached(path), { code: "EBUSY" });
    file.close();
  }));

Deno.test("a write to the page cache says what went wrong, and reads nothing behind its buffer", () =>
  withTempDir((folder) => {
    const full = openFile("/dev/full", O_RDWR);
    assert.equal(writeLow(full, new Uint8Array(8), 8, 0), Errno.ENOSPC);
    closeFile(full);
    Deno.writeFileSync(`${folder}/file`, new Uint8Array(8));
    const readOnly = openFile(`${folder}/file`, O_RDONLY);
    assert.equal(writeLow(readOnly, new Uint8Array(8), 8, 0), Errno.EBADF);
    assert.throws(() => writeLow(readOnly, new Uint8Array(8), 9, 0), RangeError);
    closeFile(readOnly);
  }));
