import assert from "node:assert/strict";
import { closeFile, O_RDWR, openFile } from "../../ffi/files.ts";
import { Arena, PAGE_BYTES } from "../../ffi/memory.ts";
import { withTempDir } from "../support/tools.ts";

/** The flags of the mapping that an address is in (proc(5), smaps). */
function mappingFlags(address: number): string[] {
  let isThere = false;
  for (const line of Deno.readTextFileSync("/proc/self/smaps").split("\n")) {
    const range = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (range !== null) {
      isThere = parseInt(range[1], 16) <= address && address < parseInt(range[2], 16);
    } else if (isThere && line.startsWith("VmFlags:")) return line.slice(8).trim().split(" ");
  }
  throw new RangeError("No mapping has this address");
}

Deno.test("a program that is started gets no share of I/O memory, into which disks may be read", () =>
  withTempDir((folder) => {
    const arena = new Arena(2 * PAGE_BYTES);
    // "dc": the mapping is not copied by a fork.
    assert.ok(mappingFlags(arena.address).includes("dc"));
    Deno.writeFileSync(`${folder}/ring`, new Uint8Array(2 * PAGE_BYTES));
    const fd = openFile(`${folder}/ring`, O_RDWR);
    arena.mapDescriptor(fd);
    arena.unmapDescriptor();
    closeFile(fd);
    assert.ok(mappingFlags(arena.address).includes("dc"));
    arena.release();
  }));
