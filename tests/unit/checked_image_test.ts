/**
 * The filter that checks the contract of drivers: a correct driver passes, and for each rule a
 * driver that breaks it is caught.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Arena } from "../../ffi/memory.ts";
import type { Done } from "../../ffi/errno.ts";
import { aioDriver } from "../../src/driver/aio.ts";
import { Deferral } from "../../src/driver/deferral.ts";
import type { ImageContext, ImageDriver, ImageSpec, RequestSink } from "../../src/driver/driver.ts";
import { RetainedState } from "../../src/driver/retained_state.ts";
import { PieceTable } from "../../src/driver/pieces.ts";
import type { DiskFile } from "../../src/queue/disk_files.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import { EVERYTHING } from "../../src/scheduler/faults.ts";
import { checkedDriver } from "../../src/testing/checked_image.ts";
import { ContractViolation } from "../../src/testing/contract.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import { putFile } from "../support/vhd.ts";

const SECTORS = 64;
const memory = new Arena(1 << 20);
const at = memory.sector;

/** Receives the completions for the device above. */
class Device implements RequestSink {
  readonly heard: string[] = [];
  wanted = true;

  pieceDone(slot: number, sectors: number, errno: number): void {
    this.heard.push(`piece ${slot} ${sectors} ${errno}`);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    this.heard.push(`extent ${slot} ${sectors} ${isData}`);
    return this.wanted;
  }

  statusDone(slot: number, errno: number): void {
    this.heard.push(`status ${slot} ${errno}`);
  }
}

/** A correct driver of raw files; tests break it one method at a time. */
class PlainImage implements ImageDriver {
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly sectors: number = SECTORS;
  readonly parent: ImageSpec | null = null;
  readonly zeroSectors = 32;
  readonly fillSectors = 16;
  readonly disk: DiskFile;
  below: ImageDriver | null = null;

  constructor(
    readonly spec: ImageSpec,
    readonly context: ImageContext,
    readonly sink: RequestSink,
  ) {
    this.disk = context.files.open(spec.path, spec);
    context.queue.register(this.disk.file);
  }

  readonly owner = {
    ioDone: (slot: number, sectors: number, errno: number): void =>
      this.sink.pieceDone(slot, Math.max(1, sectors), errno),
  };

  putBelow(below: ImageDriver): void {
    this.below = below;
  }

  operationsFor(_sectors: number): number {
    return 1;
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.context.queue.read(this.disk.file, sector, count, memorySector, this.owner, slot);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.context.queue.write(this.disk.file, sector, count, memorySector, this.owner, slot);
  }

  zero(slot: number, _sector: number, count: number): void {
    this.sink.pieceDone(slot, count, 0);
  }

  fill(slot: number, sector: number, count: number): void {
    this.write(slot, sector, count, this.context.zeros.at);
  }

  discard(slot: number, _sector: number, count: number): void {
    this.sink.pieceDone(slot, count, 0);
  }

  flush(slot: number): void {
    this.context.queue.sync(this.disk.file, this.owner, slot);
  }

  status(slot: number, _sector: number, count: number): void {
    const wanted = count === 1 || this.sink.extent(slot, count - 1, true);
    if (wanted) this.sink.extent(slot, 1, false);
    this.sink.statusDone(slot, 0);
  }

  close(done: Done): void {
    this.disk.close();
    done(null);
  }

  abandon(): void {
    this.disk.close();
  }
}

interface Bench {
  readonly device: Device;
  readonly image: ImageDriver;
  readonly disk: SimulatedDisk;
  /** Runs until all started requests have ended. */
  settle(): void;
}

/** An image of this driver behind the filter, and one below it if it has a parent. */
function open(Kind: typeof PlainImage, { readOnly = false } = {}): Bench {
  const scheduler = new SimulatedScheduler();
  const disk = new SimulatedDisk();
  for (const path of ["/a", "/b"]) putFile(disk, path, new Uint8Array(SECTORS * 512));
  const connection = disk.connect(scheduler, { latencyMs: 2 });
  const device = new Device();
  const context: ImageContext = {
    scheduler,
    queue: new DiskQueue(scheduler, connection, 64),
    files: connection,
    pieces: new PieceTable(64),
    deferral: new Deferral(scheduler),
    zeros: { at, sectors: 16 },
    retained: new RetainedState(),
    faults: EVERYTHING,
    takePrepared: () => null,
    log: () => {},
  };
  const type = checkedDriver({ ...aioDriver, open: (...given) => new Kind(...given) });
  const spec = { type: "plain", path: "/a", readOnly, direct: true };
  const image = type.open(spec, context, device);
  if (image.parent !== null) {
    const below = checkedDriver({ ...aioDriver, open: (...given) => new PlainImage(...given) });
    image.putBelow?.(below.open(image.parent, context, image.sinkBelow ?? device));
  }
  return { device, image, disk, settle: () => void scheduler.runUntil(() => false) };
}

function isViolation(what: RegExp): (error: Error) => boolean {
  return (error) => error instanceof ContractViolation && what.test(error.message);
}

/** Calls `act` with an image of a driver; the filter must report the violation. */
function assertCaught(
  what: RegExp,
  Kind: typeof PlainImage,
  act: (image: ImageDriver, bench: Bench) => void,
  options = {},
): void {
  const bench = open(Kind, options);
  const run = (): void => {
    act(bench.image, bench);
    bench.settle();
  };
  assert.throws(run, isViolation(what), String(what));
  bench.disk.close();
}

Deno.test("a driver that keeps its contract is let through", () => {
  const { image, device, settle, disk } = open(PlainImage);
  image.read(0, 0, 64, at);
  image.write(1, 0, 8, at);
  image.write(2, 8, 8, at);
  image.flush(3);
  image.zero(4, 0, 32);
  image.fill(5, 32, 16);
  image.discard(6, 0, 64);
  image.status(7, 10, 5);
  settle();
  image.read(0, 63, 1, at);
  settle();
  assert.deepEqual(device.heard.toSorted(), [
    "extent 7 1 false",
    "extent 7 4 true",
    "piece 0 1 0",
    "piece 0 64 0",
    "piece 1 8 0",
    "piece 2 8 0",
    "piece 3 1 0",
    "piece 4 32 0",
    "piece 5 16 0",
    "piece 6 64 0",
    "status 7 0",
  ]);
  let ended: unknown = "not";
  image.close((error) => ended = error);
  assert.equal(ended, null);
  disk.close();
});

/** A child of `/b`: reads of its second half go to the parent, in two reads. */
class ChildImage extends PlainImage {
  override readonly parent = { type: "plain", path: "/b", readOnly: true, direct: true };

  override operationsFor(): number {
    return 3;
  }

  override read(slot: number, sector: number, count: number, memorySector: number): void {
    const half = Math.floor(count / 2);
    super.read(slot, sector, half, memorySector);
    this.below?.read(slot, sector + half, 1, memorySector + half);
    this.below?.read(slot, sector + half + 1, count - half - 1, memorySector + half + 1);
  }

  override status(slot: number, sector: number, count: number): void {
    this.sink.extent(slot, 2, true);
    this.below?.status(slot, sector + 2, count - 2);
  }
}

Deno.test("pieces and extents that come from below count as part of the request", () => {
  const { image, device, settle } = open(ChildImage);
  image.read(0, 0, 20, at);
  image.status(1, 0, 9);
  settle();
  const pieces = device.heard.filter((line) => line.startsWith("piece")).toSorted();
  assert.deepEqual(pieces, ["piece 0 1 0", "piece 0 10 0", "piece 0 9 0"]);
  const status = device.heard.filter((line) => !line.startsWith("piece"));
  assert.deepEqual(status, [
    "extent 1 2 true",
    "extent 1 6 true",
    "extent 1 1 false",
    "status 1 0",
  ]);
});

const read = (image: ImageDriver): void => image.read(0, 0, 8, at);
const status = (image: ImageDriver): void => image.status(0, 0, 8);

Deno.test("pieces that do not add up are caught", () => {
  assertCaught(
    /pieces that are more than the request/,
    class extends PlainImage {
      override readonly owner = {
        ioDone: (slot: number): void => this.sink.pieceDone(slot, 9, 0),
      };
    },
    read,
  );
  assertCaught(
    /a piece of a request that has ended/,
    class extends PlainImage {
      override readonly owner = {
        ioDone: (slot: number, sectors: number): void => {
          for (let i = 0; i < 2; i++) this.sink.pieceDone(slot, sectors, 0);
        },
      };
    },
    read,
  );
  assertCaught(
    /a piece without sectors/,
    class extends PlainImage {
      override flush(slot: number): void {
        this.sink.pieceDone(slot, 0, 0);
      }
    },
    (image) => image.flush(0),
  );
  assertCaught(
    /no errno/,
    class extends PlainImage {
      override flush(slot: number): void {
        this.sink.pieceDone(slot, 1, -5);
      }
    },
    (image) => image.flush(0),
  );
  assertCaught(
    /closed with requests in flight/,
    class extends PlainImage {
      override readonly owner = {
        ioDone: (slot: number): void => this.sink.pieceDone(slot, 7, 0),
      };
    },
    (image, { settle }) => {
      read(image);
      settle();
      image.close(() => {});
    },
  );
});

Deno.test("a child that reads a part of its request twice is caught", () => {
  assertCaught(
    /\/a: pieces that are more than the request/,
    class extends ChildImage {
      override read(slot: number, sector: number, count: number, memorySector: number): void {
        this.context.queue.read(this.disk.file, sector, count, memorySector, this.owner, slot);
        this.below?.read(slot, sector, 1, memorySector);
        this.below?.read(slot, sector, 1, memorySector);
      }
    },
    read,
  );
});

Deno.test("more operations than a driver said are caught, its own and those below", () => {
  class Greedy extends PlainImage {
    override readonly owner = { ioDone: (): void => {} };

    override read(slot: number, sector: number, count: number, memorySector: number): void {
      for (let i = 0; i < count; i++) super.read(slot, sector + i, 1, memorySector + i);
    }
  }
  assertCaught(/more disk operations/, Greedy, read);
  assertCaught(
    /\/a: more disk operations/,
    class extends ChildImage {
      override operationsFor(): number {
        return 2;
      }
    },
    read,
  );
  // Operations that the image reserved itself are not counted.
  const { image, settle } = open(
    class extends Greedy {
      override read(slot: number, sector: number, count: number, memorySector: number): void {
        assert.ok(this.context.queue.reserve(7));
        super.read(slot, sector, count, memorySector);
      }
    },
  );
  read(image);
  settle();
});

Deno.test("extents that are wrong are caught", () => {
  const telling = (tell: (sink: RequestSink) => void): typeof PlainImage =>
    class extends PlainImage {
      override status(): void {
        tell(this.sink);
      }
    };
  const wrong: [RegExp, (sink: RequestSink) => void][] = [
    [/an extent beyond the request's end/, (sink) => sink.extent(0, 9, true)],
    [/an extent without sectors/, (sink) => sink.extent(0, 0, true)],
    [/an extent that nobody asked for/, (sink) => sink.extent(1, 8, true)],
    [/a status request without extents/, (sink) => sink.statusDone(0, 0)],
    [/a piece of a status request/, (sink) => sink.pieceDone(0, 8, 0)],
    [/the end of no status request/, (sink) => {
      for (let i = 0; i < 2; i++) sink.statusDone(0, 5);
    }],
    [/an extent that nobody asked for/, (sink) => {
      sink.statusDone(0, 5);
      sink.extent(0, 1, true);
    }],
    [/an extent beyond the request's end/, (sink) => {
      sink.extent(0, 5, true);
      sink.extent(0, 4, false);
    }],
  ];
  for (const [what, tell] of wrong) assertCaught(what, telling(tell), status);
  const deaf = telling((sink) => {
    sink.extent(0, 1, true);
    sink.extent(0, 1, false);
  });
  assertCaught(/an extent after the one that was the last/, deaf, (image, { device }) => {
    device.wanted = false;
    status(image);
  });
});

Deno.test("requests that no driver must be given are caught", () => {
  const wrong: [RegExp, (image: ImageDriver) => void][] = [
    [/a request beyond its end/, (image) => image.read(0, 60, 5, at)],
    [/a request before its start/, (image) => image.write(0, -1, 5, at)],
    [/a request without sectors/, (image) => image.discard(0, 3, 0)],
    [/a request beyond its end/, (image) => image.status(0, 0, 65)],
    [/longer than it takes at once/, (image) => image.zero(0, 0, 33)],
    [/longer than it takes at once/, (image) => image.fill(0, 0, 17)],
    [/memory that is not given out/, (image) => image.read(0, 0, 5, -2)],
    [/memory that is not given out/, (image) => image.write(0, 0, 5, 2 ** 30)],
    [/no such slot/, (image) => image.read(128, 0, 5, at)],
    [/a request whose slot is in flight/, (image) => {
      read(image);
      read(image);
    }],
    [/a request whose slot is in flight/, (image) => {
      read(image);
      image.flush(0);
    }],
  ];
  for (const [what, act] of wrong) assertCaught(what, PlainImage, act);
});

Deno.test("changes of an image that is open for reading are caught", () => {
  const readOnly = { readOnly: true };
  const changes: ((image: ImageDriver) => void)[] = [
    (image) => image.write(0, 0, 8, at),
    (image) => image.zero(0, 0, 8),
    (image) => image.fill(0, 0, 8),
    (image) => image.discard(0, 0, 8),
  ];
  for (const change of changes) {
    assertCaught(/although it is open for reading/, PlainImage, change, readOnly);
  }
  class Writes extends PlainImage {
    override flush(slot: number): void {
      this.context.queue.write(this.disk.file, 0, 1, at, this.owner, slot);
    }
  }
  class Grows extends PlainImage {
    override flush(): void {
      this.disk.truncate(1 << 20);
    }
  }
  class Frees extends PlainImage {
    override flush(): void {
      this.disk.punchHole(0, 512);
    }
  }
  for (const Kind of [Writes, Grows, Frees]) {
    assertCaught(/although it is open for reading/, Kind, (image) => image.flush(0), readOnly);
  }
});

Deno.test("a close that is not one is caught, and what comes after it", () => {
  const close = (image: ImageDriver): void => image.close(() => {});
  assertCaught(/closed with requests in flight/, PlainImage, (image) => {
    read(image);
    close(image);
  });
  const late: [RegExp, (image: ImageDriver) => void][] = [
    [/a request after it was closed/, read],
    [/a request after it was closed/, status],
    [/a flush after it was closed/, (image) => image.flush(0)],
    [/closed twice/, close],
  ];
  for (const [what, act] of late) {
    assertCaught(what, PlainImage, (image) => {
      close(image);
      act(image);
    });
  }
  const closing = (how: (image: PlainImage, done: Done) => void): typeof PlainImage =>
    class extends PlainImage {
      override close(done: Done): void {
        how(this, done);
      }
    };
  const sync = ({ context, disk }: PlainImage): void =>
    context.queue.sync(disk.file, { ioDone: () => {} }, 0);
  const wrong: [RegExp, (image: PlainImage, done: Done) => void][] = [
    [/leaves a file open/, (_image, done) => done(null)],
    [/its close ends twice/, ({ disk }, done) => {
      disk.close();
      done(null);
      done(null);
    }],
    [/keeps room of the disk queue/, ({ context, disk }, done) => {
      context.queue.reserve(3);
      disk.close();
      done(null);
    }],
    [/its close ends with operations under way/, (image, done) => {
      image.context.queue.reserve(1);
      sync(image);
      image.disk.close();
      done(null);
    }],
    [/a sync after it was closed/, (image, done) => {
      image.disk.close();
      done(null);
      sync(image);
    }],
  ];
  for (const [what, how] of wrong) assertCaught(what, closing(how), close);
});
