/** Walks over disks. */
import assert from "node:assert/strict";
import { createEngine } from "../../src/images/engine.ts";
import { OpenImage } from "../../src/images/open_image.ts";
import { walkImage } from "../../src/images/walk.ts";
import { withTempDir } from "../support/tools.ts";

const PIECE_BYTES = 256 * 1024;
const PIECES = 400;

Deno.test("a walk over a file in memory has many turns, in which signals are noticed", () =>
  withTempDir(async (folder) => {
    const path = `${folder}/a.raw`;
    Deno.writeFileSync(path, new Uint8Array(PIECES * PIECE_BYTES).fill(1));
    const engine = createEngine(() => {});
    try {
      const source = await OpenImage.open(engine, `aio:${path}`, { readOnly: true });
      const { turns } = engine.context.scheduler;
      const [before] = turns;
      let taken = 0;
      await walkImage(engine, {
        source,
        take(piece, done): void {
          taken += piece.bytes.length;
          done(null);
        },
      });
      assert.equal(taken, PIECES * PIECE_BYTES);
      assert.ok(turns[0] - before >= PIECES / 16 / 16, `${turns[0] - before} turns`);
      const controller = new AbortController();
      let done = 0;
      const walked = walkImage(engine, {
        source,
        signal: controller.signal,
        onProgress: (sectors) => void (done = sectors),
        take(_piece, taken): void {
          controller.abort();
          taken(null);
        },
      });
      await assert.rejects(walked, /Stopped before the end/);
      assert.ok(done < source.sectors / 2, `${done} sectors`);
      await source.close(engine);
    } finally {
      engine.close();
    }
  }));
