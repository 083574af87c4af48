/** Pieces of a disk that are written by the disk queue: when their memory is free, and what fails. */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { convertImage } from "../../src/images/convert.ts";
import { QueuedWrites } from "../../src/images/queued_writes.ts";
import type { Piece } from "../../src/images/walk.ts";
import type { IoOwner } from "../../src/queue/disk_queue.ts";
import { mayMount } from "../support/mounts.ts";
import { needs, runOk, withTempDir } from "../support/tools.ts";

const SECTOR_BYTES = 512;
const MIB = 1 << 20;

/** A write that was started: its place in the file and in memory, and its length, in sectors. */
interface Started {
  readonly sector: number;
  readonly count: number;
  readonly memorySector: number;
  end(errno: number): void;
}

class Rig {
  readonly started: Started[] = [];
  readonly ended: (SystemError | null)[] = [];
  readonly registered: number[] = [];
  readonly writes = new QueuedWrites({
    register: (file) => void this.registered.push(file),
    write: (file, sector, count, memorySector, owner: IoOwner, token) => {
      assert.equal(file, 7);
      const end = (errno: number): void => owner.ioDone(token, count, errno);
      this.started.push({ sector, count, memorySector, end });
    },
  }, { path: "/image", file: 7 });

  /** Writes parts of a piece: first sector, sectors, and the place in the file. */
  write(slot: number, ...parts: [number, number, number][]): void {
    const bytes = new Uint8Array(new ArrayBuffer(MIB), slot * 65536, 65536);
    const piece: Piece = { slot, sector: 0, count: 128, memorySector: 1000 * slot, bytes };
    this.writes.write(piece, (error) => void this.ended.push(error), (put) => {
      for (const [from, count, place] of parts) {
        put(
          bytes.subarray(from * SECTOR_BYTES, (from + count) * SECTOR_BYTES),
          place * SECTOR_BYTES,
        );
      }
    });
  }

  get places(): number[][] {
    return this.started.map(({ sector, count, memorySector }) => [sector, count, memorySector]);
  }
}

Deno.test("the memory of a piece is free when all its parts are written", () => {
  const rig = new Rig();
  assert.deepEqual(rig.registered, [7]);
  rig.write(2, [0, 8, 500], [16, 24, 900]);
  rig.write(3, [1, 1, 1200]);
  assert.deepEqual(rig.places, [[500, 8, 2000], [900, 24, 2016], [1200, 1, 3001]]);
  rig.started[1].end(0);
  rig.started[2].end(0);
  assert.deepEqual(rig.ended, [null]);
  rig.started[0].end(0);
  assert.deepEqual(rig.ended, [null, null]);
  rig.write(2);
  assert.deepEqual(rig.ended, [null, null, null], "a piece of zeros only");
});

Deno.test("the first error of a write ends all pieces, which wait for their other writes", () => {
  const rig = new Rig();
  rig.write(0, [0, 8, 500], [16, 24, 900]);
  rig.write(1, [0, 8, 1500]);
  rig.started[0].end(Errno.ENOSPC);
  assert.equal(rig.ended.length, 0);
  rig.started[1].end(Errno.EIO);
  const [error] = rig.ended;
  assert.ok(error instanceof SystemError && error.errno === Errno.ENOSPC);
  assert.match(error.message, /Cannot write \/image/);
  rig.started[2].end(0);
  rig.write(0, [0, 8, 3000]);
  assert.equal(rig.started.length, 3, "nothing is written after an error");
  assert.deepEqual(rig.ended, [error, error, error]);
});

Deno.test("an error of the image waits for the writes that it had started", () => {
  const rig = new Rig();
  const bytes = new Uint8Array(8192);
  const failure = new SystemError(Errno.EFBIG, "Cannot add a block");
  const piece: Piece = { slot: 4, sector: 0, count: 16, memorySector: 0, bytes };
  rig.writes.write(piece, (error) => void rig.ended.push(error), (put) => {
    put(bytes.subarray(0, 4096), 0);
    throw failure;
  });
  assert.equal(rig.ended.length, 0);
  rig.started[0].end(0);
  assert.deepEqual(rig.ended, [failure]);
});

const mounts = needs("root", "mount", "umount");
const refused = !mounts.ignore && !mayMount();

for (const type of ["vhd", "qcow2", "aio"]) {
  Deno.test({
    name: `a conversion to ${type} that finds the disk full leaves no file` +
      (refused ? " (skipped: may not mount)" : mounts.suffix),
    ignore: mounts.ignore || refused,
    fn: () =>
      withTempDir(async (folder) => {
        Deno.writeFileSync(`${folder}/src`, new Uint8Array(24 * MIB).fill(1));
        const small = `${folder}/small`;
        Deno.mkdirSync(small);
        await runOk("mount", ["-t", "tmpfs", "-o", "size=9m", "none", small]);
        try {
          const converted = convertImage(`aio:${folder}/src`, `${type}:${small}/image`);
          await assert.rejects(
            converted,
            (error) => error instanceof SystemError && error.errno === Errno.ENOSPC,
          );
          assert.deepEqual([...Deno.readDirSync(small)], []);
        } finally {
          await runOk("umount", [small]);
        }
      }),
  });
}
