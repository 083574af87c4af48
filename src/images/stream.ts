import { Errno, SystemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import { createEngine } from "./engine.ts";
import { InOrder } from "./in_order.ts";
import { OpenImage } from "./open_image.ts";
import { walkImage } from "./walk.ts";
import type { WorkOptions } from "./work.ts";

/** Where a stream goes: it gets all bytes in their order. */
export interface StreamSink {
  /** The next bytes. */
  write(bytes: Uint8Array): void;
  /** So many zeros follow, of a hole. */
  skip(lengthBytes: number): void;
}

/** Options of a stream. */
export interface StreamOptions extends Pick<WorkOptions, "signal"> {
  /** The first sector; 0 by default. */
  readonly skip?: number;
  /** How many sectors; all that follow by default. */
  readonly count?: number;
}

/**
 * Writes the content of a disk, from start to end.
 *
 * @throws {SystemError} ERANGE for a start behind the end of the disk; errors of the image and the sink.
 */
export async function streamImage(
  name: string,
  sink: StreamSink,
  { skip = 0, count, signal }: StreamOptions = {},
): Promise<void> {
  const engine = createEngine(() => {});
  try {
    const source = await OpenImage.open(engine, name, { readOnly: true, findsHoles: true });
    try {
      if (skip > source.sectors) {
        const what = `Cannot start at sector ${skip} of ${name} (it has ${source.sectors})`;
        throw new SystemError(Errno.ERANGE, what);
      }
      const range = { sector: skip, count: Math.min(count ?? Infinity, source.sectors - skip) };
      const order = new InOrder({
        write: ({ bytes }, done) => {
          sink.write(bytes);
          done(null);
        },
        skip: (sectors) => sink.skip(sectors * SECTOR_BYTES),
      }, range.sector);
      await walkImage(engine, {
        source,
        ranges: [range],
        signal,
        stretch: (stretch, isData) => order.stretch(stretch.count, isData),
        take: (piece, done) => order.add(piece, done),
      }).finally(() => order.throwFailure());
    } finally {
      await source.close(engine);
    }
  } finally {
    engine.close();
  }
}
