import assert from "node:assert/strict";
import { encodeBat } from "../../src/vhd/format/bat.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { endOfDataSector } from "../../src/vhd/format/layout.ts";
import { VHD_MAX_SIZE, VHD_SECTOR_SIZE } from "../../src/vhd/format/units.ts";
import { writeFooters } from "../../src/vhd/write.ts";
import { binaryPath, needs, withTempDir } from "../support/tools.ts";

/**
 * The largest image, with all blocks allocated in another order; the file is almost entirely
 * sparse.
 */
function makeLargest(path: string): void {
  createDynamic(path, { sizeBytes: VHD_MAX_SIZE });
  const image = openVhd(path, { readOnly: false });
  const first = Math.ceil(image.endOfHeadersBytes / 4096) * 8 + 7;
  const { bat } = image;
  for (let i = 0; i < bat.length; i++) bat[(i * 7919) % bat.length] = first + i * 4104;
  image.file.writeAt(encodeBat(image), image.batOffsetBytes);
  image.endOfDataSector = endOfDataSector(image);
  image.file.truncate(image.endOfDataSector * VHD_SECTOR_SIZE);
  writeFooters(image);
  image.close();
}

/** Peak memory of a process so far in KiB; 0 after its end. */
function peakKib(pid: number): number {
  try {
    return Number(/VmHWM:\s+(\d+)/.exec(Deno.readTextFileSync(`/proc/${pid}/status`))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

const { ignore, suffix } = needs("dist/vhd-util");

Deno.test({
  name: `check of the largest image takes at most 150 MiB of memory${suffix}`,
  ignore,
  async fn() {
    await withTempDir(async (folder) => {
      const path = `${folder}/largest.vhd`;
      makeLargest(path);
      const child = new Deno.Command(binaryPath("vhd-util"), {
        args: ["check", "-n", path],
        stdout: "piped",
      }).spawn();
      let peak = 0;
      const timer = setInterval(() => peak = Math.max(peak, peakKib(child.pid)), 2);
      const { code, stdout } = await child.output();
      clearInterval(timer);
      assert.equal(code, 0);
      assert.equal(new TextDecoder().decode(stdout), `${path} is valid\n`);
      assert.ok(peak > 20_000 && peak <= 150 * 1024, `${peak} KiB`);
    });
  },
});
