import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Errno } from "../../ffi/errno.ts";
import { encodeFooter, HD_COOKIE, VHD_POISON_COOKIE } from "../../src/vhd/format/footer.ts";
import { createFixed } from "../../src/vhd/create.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { revertJournal } from "../../src/vhd/resize/journal_revert.ts";
import {
  decodeJournalEntry,
  decodeJournalHeader,
  encodeJournalHeader,
  JOURNAL_ENTRY_SIZE,
  journalChecksum,
} from "../../src/vhd/format/journal_format.ts";
import { changesOnly, DeadProcessError, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { resizeVhd } from "../../src/vhd/resize/resize.ts";
import { getFile, putFile } from "../support/vhd.ts";

const FOLDER = new URL("../data/journal/", import.meta.url).pathname;

/** A file of the reference program, which was killed while it resized a child to 100 GiB. */
async function fixture(name: string): Promise<Uint8Array<ArrayBuffer>> {
  const packed = new Blob([Deno.readFileSync(`${FOLDER}${name}.gz`)]);
  const unpacked = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

async function interrupted(): Promise<SimulatedDisk> {
  const storage = new SimulatedDisk();
  putFile(storage, "/c.vhd", await fixture("interrupted.vhd"));
  putFile(storage, "/j", await fixture("interrupted.journal"));
  return storage;
}

interface Found {
  readonly type: number;
  readonly offsetBytes: number;
  readonly sizeBytes: number;
}

function entriesOf(journal: Uint8Array<ArrayBuffer>): Found[] {
  const header = decodeJournalHeader(journal);
  const found: Found[] = [];
  let at = 512;
  while (at < header.endBytes) {
    const front = journal.subarray(at, at + JOURNAL_ENTRY_SIZE);
    const { type, offsetBytes, sizeBytes, checksum } = decodeJournalEntry(front);
    const from = at + JOURNAL_ENTRY_SIZE;
    assert.equal(journalChecksum(front, journal.subarray(from, from + sizeBytes)), checksum);
    found.push({ type, offsetBytes, sizeBytes });
    at = from + sizeBytes;
  }
  assert.equal(found.length, header.metadataEntries + header.dataEntries);
  return found;
}

Deno.test("a journal that the reference left is reverted to the byte", async () => {
  const storage = await interrupted();
  assert.throws(() => openVhd("/c.vhd", { storage }), /out of use/);
  revertJournal("/c.vhd", { storage, journal: "/j" });
  const original = await fixture("original.vhd");
  assert.equal(Buffer.compare(getFile(storage, "/c.vhd"), original), 0);
  assert.equal(storage.exists("/j"), false);
});

Deno.test("a journal of ours has the same metadata entries as the reference's", async () => {
  const theirs = await fixture("interrupted.journal");
  const storage = new SimulatedDisk();
  putFile(storage, "/c.vhd", await fixture("original.vhd"));
  let dead = false;
  storage.beforeOperation = changesOnly(({ path }) => {
    dead ||= path === "/c.vhd";
    return dead ? Errno.EIO : 0;
  });
  const options = { storage, journal: "/j", sizeBytes: 100 * 1024 ** 3 };
  assert.throws(() => resizeVhd("/c.vhd", options));
  storage.beforeOperation = null;
  const ours = getFile(storage, "/j");
  const metadata = (journal: Uint8Array<ArrayBuffer>): Found[] =>
    entriesOf(journal).filter(({ type }) => type !== 8);
  assert.deepEqual(metadata(ours), metadata(theirs));
  const { dataOffsetBytes, metadataOffsetBytes, footerOffsetBytes, uuid } = decodeJournalHeader(
    ours,
  );
  const header = decodeJournalHeader(theirs);
  assert.deepEqual(
    [dataOffsetBytes, metadataOffsetBytes, footerOffsetBytes, uuid],
    [header.dataOffsetBytes, header.metadataOffsetBytes, header.footerOffsetBytes, header.uuid],
  );
  assert.ok(ours.length < theirs.length);
});

Deno.test("a journal that was still being written means that nothing was changed", async () => {
  const original = await fixture("original.vhd");
  const header = decodeJournalHeader(await fixture("interrupted.journal"));
  const begun = encodeJournalHeader({ ...header, dataOffsetBytes: 0, dataEntries: 0 });
  const journal = await fixture("interrupted.journal");
  journal.set(begun);
  for (const bytes of [new Uint8Array(0), new Uint8Array(4096), journal]) {
    const storage = new SimulatedDisk();
    putFile(storage, "/c.vhd", original);
    putFile(storage, "/j", bytes);
    revertJournal("/c.vhd", { storage, journal: "/j" });
    assert.equal(Buffer.compare(getFile(storage, "/c.vhd"), original), 0);
    assert.equal(storage.exists("/j"), false);
  }
  const storage = new SimulatedDisk();
  putFile(storage, "/c.vhd", original);
  putFile(storage, "/j", new Uint8Array(4096).fill(1));
  assert.throws(() => revertJournal("/c.vhd", { storage, journal: "/j" }), /is no journal/);
  assert.ok(storage.exists("/j"));
});

Deno.test("a change that the reference completed is only put back into use", async () => {
  const original = await fixture("original.vhd");
  const storage = new SimulatedDisk();
  putFile(storage, "/c.vhd", original);
  const image = openVhd("/c.vhd", { storage, readOnly: false });
  const poisoned = encodeFooter({ ...image.footer, cookie: VHD_POISON_COOKIE });
  for (const at of [0, original.length - 512]) image.file.writeAt(poisoned, at);
  image.close();
  const header = decodeJournalHeader(await fixture("interrupted.journal"));
  const counts = { dataEntries: 0, metadataEntries: 0, dataOffsetBytes: 0, metadataOffsetBytes: 0 };
  putFile(storage, "/j", encodeJournalHeader({ ...header, ...counts }));
  revertJournal("/c.vhd", { storage, journal: "/j" });
  assert.equal(openVhd("/c.vhd", { storage }).footer.cookie, HD_COOKIE);
  assert.equal(Buffer.compare(getFile(storage, "/c.vhd"), original), 0);
});

Deno.test("a journal with a part of a sector is reverted", () => {
  using origin = new SimulatedDisk();
  createFixed("/f.vhd", { storage: origin, sizeBytes: 2 << 20, sparse: true });
  const bytes = getFile(origin, "/f.vhd");
  const gap = new Uint8Array(100).fill(7);
  putFile(
    origin,
    "/f.vhd",
    new Uint8Array([...bytes.subarray(0, 2 << 20), ...gap, ...bytes.subarray(2 << 20)]),
  );
  const before = getFile(origin, "/f.vhd");
  let reverted = 0;
  let done = false;
  for (let left = 0; !done; left++) {
    using storage = origin.copy();
    let changes = 0;
    storage.beforeOperation = changesOnly(() => {
      if (++changes > left) storage.killProcesses();
    });
    try {
      resizeVhd("/f.vhd", { storage, sizeBytes: 4 << 20, journal: "/j" });
      done = true;
    } catch (error) {
      if (!(error instanceof DeadProcessError)) throw error;
    }
    storage.beforeOperation = null;
    if (!storage.exists("/j")) continue;
    revertJournal("/f.vhd", { storage, journal: "/j" });
    const after = getFile(storage, "/f.vhd");
    if (Buffer.compare(after, before) === 0) reverted++;
    else assert.equal(openVhd("/f.vhd", { storage }).sizeBytes, 4 << 20);
  }
  assert.ok(reverted > 4, `${reverted} times`);
});
