/** What comes from an image or a server has limits that are checked before memory is taken for it. */
import assert from "node:assert/strict";
import { ClientHandshake } from "../../src/driver/nbd/handshake.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { HEADER_OFFSETS, headerChecksum } from "../../src/vhd/format/header.ts";
import { isJournalEntry } from "../../src/vhd/format/journal_format.ts";
import { MAX_BAT_ENTRIES } from "../../src/vhd/image/header_reader.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { packed } from "../support/nbd_client.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const HEADER_AT = 512;

/** An image of 128 MiB, of which one field of the header is changed. */
function withField(offset: number, value: number): () => unknown {
  const storage = new SimulatedDisk();
  createDynamic("/a.vhd", { storage, sizeBytes: 64 * MIB });
  const small = getFile(storage, "/a.vhd");
  const bytes = new Uint8Array(128 * MIB);
  bytes.set(small);
  bytes.set(small.subarray(small.length - 512), bytes.length - 512);
  const header = bytes.subarray(HEADER_AT, HEADER_AT + 1024);
  const view = new DataView(bytes.buffer, HEADER_AT, 1024);
  view.setUint32(offset, value);
  view.setUint32(HEADER_OFFSETS.checksum, headerChecksum(header));
  putFile(storage, "/a.vhd", bytes);
  return () => openVhd("/a.vhd", { storage }).close();
}

Deno.test("an image with a block or a table beyond the limit is refused", () => {
  withField(HEADER_OFFSETS.blockSize, 64 * MIB)();
  assert.throws(withField(HEADER_OFFSETS.blockSize, 128 * MIB), /512 bytes to 64 MiB/);
  // The table has room in the file: it is refused for its size alone.
  assert.throws(withField(HEADER_OFFSETS.maxBatEntries, MAX_BAT_ENTRIES + 1), /maxBatEntries|BAT/);
  withField(HEADER_OFFSETS.maxBatEntries, MAX_BAT_ENTRIES)();
});

Deno.test("an entry of a journal beyond the limit is none", () => {
  const entry = {
    cookie: 0xaaaa_1234_4321_aaaan,
    type: 1,
    offsetBytes: 0,
    checksum: 0,
    sizeBytes: 64 * MIB,
  };
  assert.equal(isJournalEntry(entry), true);
  assert.equal(isJournalEntry({ ...entry, sizeBytes: 64 * MIB + 512 }), false);
});

Deno.test("a server's reply beyond the limit ends the handshake before its content is taken", () => {
  const replyOf = (length: number): Uint8Array =>
    packed([8, 0x3e889045565a9n], [4, 8], [4, 1], [4, length]);
  const started = (): ClientHandshake => {
    const client = new ClientHandshake("disk", "nbd:test");
    client.receive(new TextEncoder().encode("NBDMAGICIHAVEOPT\0\x03"));
    return client;
  };
  started().receive(replyOf(16 * 1024));
  assert.throws(() => started().receive(replyOf(16 * 1024 + 1)), /breaks the NBD protocol/);
});
