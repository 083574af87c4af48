/** The driver of VHDX: chains, bitmaps, logs that were left behind, sectors of 4096 bytes, bad images. */
import assert from "node:assert/strict";
import { openVhdx } from "../../src/vhdx/image.ts";
import { Random } from "../../src/testing/random.ts";
import { type SimulatedDevice, Simulation, stampedSectors, stampOf } from "../support/sim.ts";
import { putFile, syncFile } from "../support/vhd.ts";
import { MadeVhdx } from "../support/vhdx.ts";

const BASE = "aaaaaaaa-0000-4000-8000-000000000001";
const CHILD = "aaaaaaaa-0000-4000-8000-000000000002";
const SECTORS = 48 * 2048;
const SIZE = SECTORS * 512;

/** Runs of sectors with a stamp. */
function some(random: Random, stamp: number, unit: number): Map<number, Uint8Array> {
  const sectors = new Map<number, Uint8Array>();
  for (let i = 0; i < 40; i++) {
    const first = random.below((SECTORS - 200) / unit) * unit;
    for (let k = 0; k < unit * (1 + random.below(16)); k++) {
      sectors.set(first + k, stampedSectors(first + k, 1, stamp));
    }
  }
  return sectors;
}

function put(simulation: Simulation, path: string, { bytes }: MadeVhdx): void {
  putFile(simulation.disk, path, bytes);
  syncFile(simulation.disk, path);
}

function stampsOf(device: SimulatedDevice): Int32Array {
  const stamps = new Int32Array(SECTORS);
  for (let sector = 0; sector < SECTORS; sector += 512) {
    const { data } = settled(device, sector);
    for (let i = 0; i < 512; i++) stamps[sector + i] = stampOf(data, i, sector + i);
  }
  return stamps;
}

function settled(device: SimulatedDevice, sector: number): { data: Uint8Array } {
  const outcome = device.read(sector, 512);
  device.settle();
  assert.equal(outcome.errno, 0);
  assert.ok(outcome.data);
  return { data: outcome.data };
}

function expected(...layers: readonly ReadonlyMap<number, Uint8Array>[]): Int32Array {
  const stamps = new Int32Array(SECTORS);
  for (const layer of layers) {
    for (const [sector, bytes] of layer) stamps[sector] = stampOf(bytes, 0, sector);
  }
  return stamps;
}

for (const sectorBytes of [512, 4096]) {
  for (const blockBytes of [1 << 20, 8 << 20]) {
    Deno.test(`VHDX: a chain reads as its layers, sectors of ${sectorBytes}, blocks of ${blockBytes}`, () => {
      const random = new Random(sectorBytes + blockBytes);
      const simulation = new Simulation({ seed: 1, latencyMs: 2 });
      const unit = sectorBytes / 512;
      const shape = { sizeBytes: SIZE, sectorBytes, blockBytes };
      const [below, above] = [some(random, 5, unit), some(random, 6, unit)];
      put(simulation, "/base.vhdx", new MadeVhdx({ ...shape, dataGuid: BASE, sectors: below }));
      const parent = { path: "base.vhdx", dataGuid: BASE };
      const child = new MadeVhdx({ ...shape, dataGuid: CHILD, parent, sectors: above });
      put(simulation, "/child.avhdx", child);
      const device = simulation.open("vhdx:/child.avhdx", { readOnly: true });
      assert.equal(device.vbd.sectors, SECTORS);
      assert.deepEqual(stampsOf(device), expected(below, above));
      const status = device.status(0, SECTORS);
      device.settle();
      let at = 0;
      for (const extent of status.extents ?? []) {
        if (extent < 0) {
          for (let i = 0; i < -extent; i++) assert.ok(!above.has(at + i), `sector ${at + i}`);
        }
        at += Math.abs(extent);
      }
      device.close();
      simulation.close();
    });
  }
}

Deno.test("VHDX: a log that was left behind is replayed in memory", () => {
  const random = new Random(3);
  const sectors = some(random, 5, 1);
  for (const start of [0, (1 << 20) - 12288]) {
    const simulation = new Simulation({ seed: 1 });
    const image = new MadeVhdx({ sizeBytes: SIZE, dataGuid: BASE, sectors });
    const page = image.bytes.slice(image.batAt, image.batAt + 4096);
    const old = new Uint8Array(4096).fill(0xff);
    image.bytes.fill(0, image.batAt, image.batAt + 4096);
    // The last entry of a page counts.
    image.leaveInLog([
      { at: image.batAt, page: old },
      { at: image.batAt, page: null },
      { at: image.batAt, page },
    ], { start });
    put(simulation, "/disk.vhdx", image);
    const device = simulation.open("vhdx:/disk.vhdx", { readOnly: true });
    assert.deepEqual(stampsOf(device), expected(sectors));
    device.close();
    simulation.close();
  }
});

Deno.test("VHDX: a log changes bitmaps too", () => {
  const simulation = new Simulation({ seed: 1 });
  // The first and the last bytes of a page are in its descriptor.
  const sectors = new Map([3, 9, 32767].map((at) => [at, stampedSectors(at, 1, 8)]));
  const parent = { path: "base.vhdx", dataGuid: BASE };
  put(
    simulation,
    "/base.vhdx",
    new MadeVhdx({ sizeBytes: SIZE, dataGuid: BASE, sectors: new Map() }),
  );
  const child = new MadeVhdx({ sizeBytes: SIZE, dataGuid: CHILD, parent, sectors });
  const page = child.bytes.slice(4 << 20, (4 << 20) + 4096);
  child.bytes.fill(0, 4 << 20, (4 << 20) + 4096);
  child.leaveInLog([{ at: 4 << 20, page }]);
  put(simulation, "/child.vhdx", child);
  const device = simulation.open("vhdx:/child.vhdx", { readOnly: true });
  assert.deepEqual(stampsOf(device), expected(sectors));
  device.close();
  simulation.close();
});

interface Bad {
  readonly what: string;
  readonly message: RegExp;
  change(image: MadeVhdx): void;
}

const LOGGED = { at: 3 << 20, page: new Uint8Array(4096) };

const BAD: readonly Bad[] = [
  { what: "the signature", message: /signature/, change: ({ bytes }) => bytes.fill(0, 0, 8) },
  {
    what: "both headers",
    message: /both have a wrong checksum/,
    change: ({ bytes }) => [65636, 131172].forEach((at) => bytes[at] ^= 1),
  },
  {
    what: "a version",
    message: /header\.Version/,
    change(image): void {
      for (const at of [65536, 131072]) {
        image.view.setUint16(at + 66, 2, true);
        image.seal(at, 4096);
      }
    },
  },
  {
    what: "both region tables",
    message: /region tables/,
    change: ({ bytes }) => [196700, 262300].forEach((at) => bytes[at] ^= 1),
  },
  {
    what: "a block past the end",
    message: /bat\[2\]/,
    change: (image) => image.setBat(2, 1 << 30, 6),
  },
  { what: "a block at 0", message: /bat\[1\]/, change: (image) => image.setBat(1, 0, 6) },
  {
    what: "a part of a block",
    message: /bat\[0\]/,
    change: (image) => image.setBat(0, 4 << 20, 7),
  },
  { what: "an unknown state", message: /bat\[5\]/, change: (image) => image.setBat(5, 0, 4) },
  {
    what: "a size that is no sectors",
    message: /VirtualDiskSize/,
    change: (image) => image.view.setUint32(image.metadataAt + 65536 + 8, 77, true),
  },
  {
    what: "a block size",
    message: /BlockSize/,
    change: (image) => image.view.setUint32(image.metadataAt + 65536, 3 << 20, true),
  },
  {
    what: "a log that was overwritten",
    message: /LogGuid/,
    change(image): void {
      image.leaveInLog([LOGGED]);
      image.bytes[image.logAt + 100] ^= 1;
    },
  },
  {
    what: "a file that was cut after its log",
    message: /FlushedFileOffset/,
    change(image): void {
      image.leaveInLog([LOGGED]);
      image.bytes = image.bytes.slice(0, image.bytes.length - (1 << 20));
    },
  },
  {
    what: "a log that changes data",
    message: /is not metadata/,
    change: (image) => image.leaveInLog([{ at: 4 << 20, page: new Uint8Array(4096) }]),
  },
];

Deno.test("VHDX: bad images are refused, and the error says why", () => {
  for (const { what, message, change } of BAD) {
    const simulation = new Simulation({ seed: 1 });
    const sectors = new Map([[0, stampedSectors(0, 1, 1)]]);
    const image = new MadeVhdx({ sizeBytes: SIZE, dataGuid: BASE, sectors });
    change(image);
    put(simulation, "/disk.vhdx", image);
    assert.throws(() => openVhdx("/disk.vhdx", { storage: simulation.disk }), message, what);
    simulation.close();
  }
});

Deno.test("VHDX: what is required and unknown is refused by name; what is not required is ignored", () => {
  const guid = "cccccccc-0000-4000-8000-000000000003";
  for (const part of ["regions", "items"] as const) {
    for (const isRequired of [true, false]) {
      const simulation = new Simulation({ seed: 1 });
      const wish = {
        sizeBytes: SIZE,
        dataGuid: BASE,
        sectors: new Map(),
        [part]: [{ guid, isRequired }],
      };
      put(simulation, "/disk.vhdx", new MadeVhdx(wish));
      const open = (): void => openVhdx("/disk.vhdx", { storage: simulation.disk }).close();
      if (isRequired) assert.throws(open, /unknown type cccccccc-0000/);
      else open();
      simulation.close();
    }
  }
});

Deno.test("VHDX: a parent that is another image is refused, and so is writing", () => {
  const simulation = new Simulation({ seed: 1 });
  const shape = { sizeBytes: SIZE, sectors: new Map() };
  put(simulation, "/base.vhdx", new MadeVhdx({ ...shape, dataGuid: CHILD }));
  const parent = { path: "base.vhdx", dataGuid: BASE };
  put(simulation, "/child.vhdx", new MadeVhdx({ ...shape, dataGuid: CHILD, parent }));
  assert.throws(
    () => simulation.open("vhdx:/child.vhdx", { readOnly: true }),
    /was made from aaaaaaaa/,
  );
  assert.throws(() => simulation.open("vhdx:/base.vhdx"), /for writing/);
  simulation.close();
});
