import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Errno } from "../../ffi/errno.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { fillImage, preallocate } from "../../src/vhd/fill.ts";
import { updateFooters } from "../../src/vhd/image/footer_writer.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { revertJournal } from "../../src/vhd/resize/journal_revert.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { changeParent, killData, setPhysicalSize } from "../../src/vhd/modify.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { setField } from "../../src/vhd/set_fields.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { killEverywhere } from "../support/kill_everywhere.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;

function write(storage: SimulatedDisk, path: string, offsets: readonly number[]): void {
  const image = openVhd(path, { storage, readOnly: false });
  for (const offsetBytes of offsets) {
    writeRange(image, new Uint8Array(4096).fill(path.charCodeAt(1)), offsetBytes);
  }
  writeRange(image, new Uint8Array(2 * MIB).fill(0x77), 12 * MIB);
  finishWriting(image);
  image.close();
}

/** Two parents with different data, and `/child.vhd`, a child of the first. */
function makeFamily(): SimulatedDisk {
  const storage = new SimulatedDisk();
  for (const path of ["/a.vhd", "/b.vhd"]) {
    createDynamic(path, { storage, sizeBytes: SIZE });
    write(storage, path, [0, 6 * MIB]);
  }
  snapshot("/child.vhd", { storage, parent: "/a.vhd" });
  write(storage, "/child.vhd", [2 * MIB, 8 * MIB]);
  return storage;
}

function contentOf(storage: SimulatedDisk, path: string): Uint8Array<ArrayBuffer> {
  const chain = openChain(path, { storage });
  const bytes = new Uint8Array(SIZE);
  readRange(chain, bytes, 0);
  chain.close();
  return bytes;
}

function assertValid(storage: SimulatedDisk, path: string): void {
  const { findings } = checkImage(path, { storage, checkData: true });
  assert.deepEqual(findings, []);
}

Deno.test("a new parent: wherever it is broken off, the chain is that of the old or the new one", () => {
  const origin = makeFamily();
  const before = contentOf(origin, "/child.vhd");
  const done = origin.copy();
  changeParent("/child.vhd", { storage: done, parent: "/b.vhd" });
  const after = contentOf(done, "/child.vhd");
  assert.notDeepEqual(after, before);
  killEverywhere(
    origin,
    (storage) => changeParent("/child.vhd", { storage, parent: "/b.vhd" }),
    (storage, finished) => {
      const content = contentOf(storage, "/child.vhd");
      const isNew = Buffer.compare(content, after) === 0;
      assert.ok(isNew || (!finished && Buffer.compare(content, before) === 0));
      assertValid(storage, "/child.vhd");
    },
  );
});

Deno.test("a raw parent, and back", () => {
  const storage = makeFamily();
  putFile(storage, "/raw.img", new Uint8Array(SIZE).fill(0x5a));
  changeParent("/child.vhd", { storage, parent: "/raw.img", rawParent: true });
  const content = contentOf(storage, "/child.vhd");
  assert.deepEqual([content[0], content[2 * MIB], content[12 * MIB]], [0x5a, 0x63, 0x77]);
  assertValid(storage, "/child.vhd");
  changeParent("/child.vhd", { storage, parent: "/a.vhd" });
  assert.equal(contentOf(storage, "/child.vhd")[0], 0x61);
  assertValid(storage, "/child.vhd");
});

Deno.test("a parent with a longer name needs a journal, which gives the old one back to the byte", () => {
  const origin = makeFamily();
  const long = `/${"folder/".repeat(60)}b.vhd`;
  putFile(origin, long, getFile(origin, "/b.vhd"));
  const original = getFile(origin, "/child.vhd");
  assert.throws(
    () => changeParent("/child.vhd", { storage: origin, parent: long }),
    { errno: Errno.ENAMETOOLONG },
  );
  assert.deepEqual(getFile(origin, "/child.vhd"), original);
  let killed = 0;
  let reverted = 0;
  killEverywhere(
    origin,
    (storage) => changeParent("/child.vhd", { storage, parent: long, journal: "/journal" }),
    (storage, finished) => {
      if (storage.exists("/journal")) {
        assert.ok(!finished);
        revertJournal("/child.vhd", { storage, journal: "/journal" });
      }
      // Killed while the journal is removed: the change is complete, and a revert does not undo it.
      if (Buffer.compare(getFile(storage, "/child.vhd"), original) === 0) reverted++;
      else assert.equal(contentOf(storage, "/child.vhd")[0], 0x62);
      killed++;
      if (finished) assert.ok(reverted >= killed - 7, `${reverted} of ${killed} give it back`);
      assertValid(storage, "/child.vhd");
    },
  );
});

Deno.test("what cannot be a parent is refused", () => {
  const storage = makeFamily();
  const original = getFile(storage, "/child.vhd");
  const attempt = (child: string, parent: string, errno: number): void =>
    assert.throws(() => changeParent(child, { storage, parent }), { errno }, parent);
  attempt("/child.vhd", "/nosuch.vhd", Errno.ENOENT);
  attempt("/child.vhd", "/child.vhd", Errno.EINVAL);
  attempt("/a.vhd", "/b.vhd", Errno.EINVAL);
  putFile(storage, "/junk", new Uint8Array(8192));
  attempt("/child.vhd", "/junk", Errno.EINVAL);
  assert.deepEqual(getFile(storage, "/child.vhd"), original);
});

Deno.test("data is forgotten: wherever it is broken off, the image is valid", () => {
  const origin = makeFamily();
  killEverywhere(
    origin,
    (storage) => killData("/child.vhd", { storage }),
    (storage, finished) => {
      const { valid } = checkImage("/child.vhd", { storage, checkData: true });
      assert.ok(valid);
      if (!finished) return;
      assertValid(storage, "/child.vhd");
      assert.deepEqual(contentOf(storage, "/child.vhd"), contentOf(storage, "/a.vhd"));
      assert.equal(getFile(storage, "/child.vhd").length, 5120);
    },
  );
  createFixed("/fixed.vhd", { storage: origin, sizeBytes: 2 * MIB });
  assert.throws(() => killData("/fixed.vhd", { storage: origin }), { errno: Errno.ENOSYS });
});

Deno.test("the footer goes to a given end, but never over data", () => {
  const storage = makeFamily();
  const end = getFile(storage, "/a.vhd").length;
  const setEnd = (sizeBytes: number): void => setPhysicalSize("/a.vhd", { storage, sizeBytes });
  assert.throws(() => setEnd(end - 512), { errno: Errno.EINVAL });
  assert.throws(() => setEnd(end + 100), { errno: Errno.EINVAL });
  setEnd(end);
  assert.equal(getFile(storage, "/a.vhd").length, end);
  setEnd(end + 8192);
  assert.equal(getFile(storage, "/a.vhd").length, end + 8192);
  assert.ok(checkImage("/a.vhd", { storage }).valid);
});

Deno.test("fill makes a child independent; the disk reads the same all the while", () => {
  const origin = makeFamily();
  const before = contentOf(origin, "/child.vhd");
  killEverywhere(
    origin,
    (storage) => fillImage("/child.vhd", { storage }),
    (storage, finished) => {
      assert.ok(Buffer.compare(contentOf(storage, "/child.vhd"), before) === 0);
      assert.ok(checkImage("/child.vhd", { storage, ignoreFooter: true }).valid);
      if (!finished) return;
      assertValid(storage, "/child.vhd");
      const { bat, blocks } = openVhd("/child.vhd", { storage });
      assert.ok(bat.subarray(0, blocks).every((entry) => entry !== 0xffff_ffff));
    },
  );
});

Deno.test("fill -b makes blocks without their data, and keeps those that are there", () => {
  for (const path of ["/a.vhd", "/child.vhd"]) {
    const origin = makeFamily();
    const before = contentOf(origin, path);
    killEverywhere(
      origin,
      (storage) => preallocate(path, { storage }),
      (storage, finished) => {
        assert.ok(Buffer.compare(contentOf(storage, path), before) === 0);
        assert.ok(checkImage(path, { storage, ignoreFooter: true, checkData: true }).valid);
        if (finished) assertValid(storage, path);
      },
    );
  }
  const storage = new SimulatedDisk();
  createDynamic("/d.vhd", { storage, sizeBytes: SIZE });
  preallocate("/d.vhd", { storage, fromSector: 5000, toSector: 12288 });
  const { bat, batmap } = openVhd("/d.vhd", { storage });
  assert.deepEqual([...bat].map((entry) => entry !== 0xffff_ffff), [
    false,
    true,
    true,
    true,
    false,
    false,
    false,
    false,
  ]);
  assert.equal(batmap?.bits[0], 0x70);
  assert.throws(
    () => preallocate("/d.vhd", { storage, toSector: SIZE / 512 }),
    { errno: Errno.ERANGE },
  );
});

Deno.test("repair mends footers, a missing UUID and a batmap, and nothing else", () => {
  const origin = makeFamily();
  const sound = getFile(origin, "/a.vhd");
  const repairOf = (change: (bytes: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer>) => {
    const storage = origin.copy();
    putFile(storage, "/a.vhd", change(sound.slice()));
    const content = contentOf(storage, "/a.vhd");
    const mended = repairImage("/a.vhd", { storage });
    assertValid(storage, "/a.vhd");
    assert.deepEqual(contentOf(storage, "/a.vhd"), content);
    return { mended, bytes: getFile(storage, "/a.vhd") };
  };
  const cut = repairOf((bytes) => bytes.slice(0, -512));
  assert.deepEqual(cut.mended, ["wrote the footer from the backup footer"]);
  assert.deepEqual(cut.bytes, sound);
  const stale = repairOf((bytes) => (bytes.fill(0xee, 85, 86), bytes));
  assert.match(stale.mended[0], /backup footer/);
  assert.deepEqual(stale.bytes, sound);
  const { batmap } = openVhd("/a.vhd", { storage: origin });
  assert.ok(batmap !== null);
  const map = repairOf((
    bytes,
  ) => (bytes.fill(0xff, batmap.offsetBytes, batmap.offsetBytes + 1), bytes));
  assert.deepEqual(map.mended, ["rebuilt the batmap from the bitmaps of the blocks"]);
  assert.deepEqual(map.bytes, sound);
  assert.deepEqual(repairOf((bytes) => bytes), { mended: [], bytes: sound });
  const nameless = repairOf((bytes) => {
    const storage = new SimulatedDisk();
    putFile(storage, "/x.vhd", bytes);
    const image = openVhd("/x.vhd", { storage, readOnly: false });
    image.footer.uuid = new Uint8Array(16);
    updateFooters(image);
    return getFile(storage, "/x.vhd");
  });
  assert.deepEqual(nameless.mended, ["set a new UUID"]);
  const storage = origin.copy();
  putFile(
    storage,
    "/a.vhd",
    (() => {
      const bytes = sound.slice();
      new DataView(bytes.buffer).setUint32(1536, 3);
      return bytes;
    })(),
  );
  const damaged = getFile(storage, "/a.vhd");
  assert.throws(() => repairImage("/a.vhd", { storage }), /bat\[0\]/);
  assert.deepEqual(getFile(storage, "/a.vhd"), damaged);
});

Deno.test("hidden goes into the footers; on a full disk into the backup at least", () => {
  const storage = makeFamily();
  setField("/a.vhd", { storage, field: "hidden", value: 1 });
  assert.equal(openVhd("/a.vhd", { storage }).hidden, true);
  assertValid(storage, "/a.vhd");
  setField("/a.vhd", { storage, field: "marker", value: 200 });
  assert.equal(openVhd("/a.vhd", { storage }).batmap?.header.marker, 200);
  assertValid(storage, "/a.vhd");
  setField("/a.vhd", { storage, field: "hidden", value: 0 });
  const steps: string[] = [];
  storage.beforeOperation = ({ kind }) => {
    if (kind !== "write" && kind !== "sync") return 0;
    steps.push(kind);
    return steps.length === 1 ? Errno.ENOSPC : 0;
  };
  setField("/a.vhd", { storage, field: "hidden", value: 1 });
  storage.beforeOperation = null;
  assert.deepEqual(steps, ["write", "write", "sync"]);
  assert.equal(openVhd("/a.vhd", { storage, useBackupFooter: true }).footer.hidden, 1);
  createFixed("/fixed.vhd", { storage, sizeBytes: 2 * MIB });
  assert.throws(
    () => setField("/fixed.vhd", { storage, field: "marker", value: 1 }),
    { errno: Errno.EOPNOTSUPP },
  );
});

Deno.test("a field is never set to what check would reject", () => {
  const storage = makeFamily();
  const before = getFile(storage, "/a.vhd");
  for (const value of [2, 3, 255, 256, -1, 0.5, NaN]) {
    const attempt = (): void => setField("/a.vhd", { storage, field: "hidden", value });
    assert.throws(attempt, { errno: Errno.EINVAL }, String(value));
  }
  for (const value of [256, -1, 0.5, NaN]) {
    const attempt = (): void => setField("/a.vhd", { storage, field: "marker", value });
    assert.throws(attempt, { errno: Errno.EINVAL }, String(value));
  }
  assert.deepEqual(getFile(storage, "/a.vhd"), before);
});

Deno.test("a field is set where the footer that counts is", () => {
  const origin = makeFamily();
  const sound = getFile(origin, "/a.vhd");
  const hide = (bytes: Uint8Array<ArrayBuffer>): SimulatedDisk => {
    const storage = new SimulatedDisk();
    putFile(storage, "/a.vhd", bytes);
    setField("/a.vhd", { storage, field: "hidden", value: 1 });
    const image = openVhd("/a.vhd", { storage });
    assert.equal(image.hidden, true);
    assert.equal(getFile(storage, "/a.vhd").length, bytes.length);
    return storage;
  };
  assertValid(hide(sound), "/a.vhd");
  hide(sound.slice(0, -1));
  // A tapdisk is appending a block that has no BAT entry yet.
  const growing = new Uint8Array(sound.length + MIB).fill(0x66);
  growing.set(sound.subarray(0, -512));
  const end = getFile(hide(growing), "/a.vhd").subarray(sound.length - 512);
  assert.ok(end.every((byte) => byte === 0x66));
});
