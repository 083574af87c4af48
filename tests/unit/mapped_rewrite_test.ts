/** A mapped log whose bytes have to be written again, after a sync that failed. */
import assert from "node:assert/strict";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { withTempDir } from "../support/tools.ts";

const LENGTH_BYTES = 9000;
const HEADER_BYTES = 48;

Deno.test("mapped file: writing it again changes nothing in front of the offset, nor behind it", () =>
  withTempDir((folder) => {
    const path = `${folder}/log`;
    Deno.writeFileSync(path, new Uint8Array(LENGTH_BYTES));
    const modified = (): number => Deno.statSync(path).mtime?.getTime() ?? 0;
    const log = osDiskFiles.map(path, LENGTH_BYTES);
    Deno.utimeSync(path, 0, 0);
    log.bytes[HEADER_BYTES] = 5;
    log.bytes[LENGTH_BYTES - 1] = 7;
    Deno.utimeSync(path, 0, 0);
    log.rewrite(HEADER_BYTES);
    assert.ok(modified() > 0, "it was written");
    log.close();
    const wanted = new Uint8Array(LENGTH_BYTES);
    wanted.set([5], HEADER_BYTES);
    wanted.set([7], LENGTH_BYTES - 1);
    assert.deepEqual(Deno.readFileSync(path), wanted);
  }));

Deno.test("mapped file: one that was cut meanwhile is written again without the end of the process", () =>
  withTempDir((folder) => {
    const path = `${folder}/log`;
    Deno.writeFileSync(path, new Uint8Array(LENGTH_BYTES));
    const log = osDiskFiles.map(path, LENGTH_BYTES);
    Deno.truncateSync(path, 0);
    log.rewrite(HEADER_BYTES);
    log.close();
  }));
