/** Streams of disks: their order, and sinks that fail. */
import assert from "node:assert/strict";
import { Arena } from "../../ffi/memory.ts";
import { REQUEST_SECTORS } from "../../src/driver/driver.ts";
import { createEngine } from "../../src/images/engine.ts";
import { createImage } from "../../src/images/create.ts";
import { OpenImage } from "../../src/images/open_image.ts";
import { streamImage, type StreamSink } from "../../src/images/stream.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { withTempDir } from "../support/tools.ts";
// Loaded here because Deno reports a library that is loaded within a test as a leak.
import "../../src/images/convert.ts";

const MIB = 1 << 20;

/** A range of a disk that is written in one request. */
interface Part {
  readonly sector: number;
  readonly count: number;
}

/** Makes an image and writes parts of it one after the other; returns what the disk then holds. */
async function writeParts(
  name: string,
  sizeBytes: number,
  parts: readonly Part[],
): Promise<Uint8Array<ArrayBuffer>> {
  const content = new Uint8Array(sizeBytes);
  const engine = createEngine(() => {});
  const arena = new Arena(REQUEST_SECTORS * 512);
  createImage(name, { sizeBytes });
  const image = await OpenImage.open(engine, name, { readOnly: false });
  for (const [i, { sector, count }] of parts.entries()) {
    arena.bytes.fill(1 + i % 250);
    content.fill(1 + i % 250, sector * 512, (sector + count) * 512);
    await engine.run((finished) => {
      image.user = { requestDone: () => finished() };
      image.write(0, sector, count, arena.sector);
    });
  }
  await image.close(engine);
  engine.close();
  arena.release();
  return content;
}

for (const type of ["qcow", "qcow2", "vhd"]) {
  Deno.test(`a stream of a ${type} whose parts are not in order in the file is the disk`, () =>
    withTempDir(async (folder) => {
      const name = `${type}:${folder}/disk`;
      const parts = [[4096, 128], [128, 128], [0, 128], [8192, 128]];
      const content = await writeParts(
        name,
        8 * MIB,
        parts.map(([sector, count]) => ({ sector, count })),
      );
      const got = new Uint8Array(8 * MIB);
      let at = 0;
      await streamImage(name, {
        write(bytes): void {
          got.set(bytes, at);
          at += bytes.length;
        },
        skip: (lengthBytes) => void (at += lengthBytes),
      });
      assert.equal(at, 8 * MIB);
      assertBytes(got, content);
    }));
}

/** Takes so many calls, and then fails each time. */
class FailingSink implements StreamSink {
  #left: number;

  constructor(calls: number) {
    this.#left = calls;
  }

  write(): void {
    if (--this.#left < 0) throw new Deno.errors.BrokenPipe("The reader has gone");
  }

  skip(): void {
    this.write();
  }
}

Deno.test("a stream whose sink fails ends with what the sink threw, wherever that is", () =>
  withTempDir(async (folder) => {
    // Data for more requests than are under way at once, and holes between.
    const name = `qcow2:${folder}/disk`;
    const parts = Array.from({ length: 24 }, (_, i) => ({ sector: 1024 * i, count: 512 }));
    await writeParts(name, 16 * MIB, parts);
    for (const calls of [0, 1, 2, 5, 20, 40]) {
      await assert.rejects(streamImage(name, new FailingSink(calls)), Deno.errors.BrokenPipe);
    }
    await streamImage(name, new FailingSink(1000));
  }));
