/**
 * Compares what qemu reads from an image with what the image is to hold.
 *
 * @module
 */
import { osStorage } from "../../../src/files/storage.ts";
import type { Random } from "../../../src/testing/random.ts";
import { openChain } from "../../../src/vhd/image/chain.ts";
import { SECTOR_BYTES, stamped } from "../sim/stamps.ts";
import { findTool } from "../../support/tools.ts";
import type { SearchContext } from "../search.ts";
import { makeChain } from "./chain.ts";
import type { Content } from "./content.ts";
import { compareOffline } from "./reading.ts";

/** Whether qemu-img is installed. */
export const HAS_QEMU = findTool("qemu-img") !== undefined;

/** Larger disks take qemu too long. */
const MOST_SECTORS = 2 ** 22;

/** qemu takes smaller blocks for blocks without a bitmap, against the specification. */
const LEAST_BLOCK_SECTORS = 8;

/** What qemu-img says of images that it does not read; all else is a finding. */
const REFUSALS = [
  /too large|Too many blocks|invalid VHD header/i,
  // qemu looks at entries behind the last block, too.
  /free_data_block_offset points after the end of file/,
];

/**
 * Makes an image in real files and compares what qemu and the offline reader see. qemu knows no
 * parents, and ignores bitmaps: only images in which that makes no difference are compared.
 */
export function compareWithQemu(
  random: Random,
  context: Pick<SearchContext, "folder" | "count" | "trace">,
): void {
  const folder = Deno.makeTempDirSync({ dir: context.folder });
  try {
    compareIn(folder, random, context);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

function compareIn(
  folder: string,
  random: Random,
  { count, trace }: Pick<SearchContext, "count" | "trace">,
): void {
  const chain = makeChain(random, osStorage, {
    folder,
    mostLayers: 1,
    encrypted: 0,
    damaged: 0,
    plainNames: true,
  });
  const { path, content, what, isPlain, blockSectors } = chain.top;
  const isOdd = blockSectors > 0 && blockSectors < LEAST_BLOCK_SECTORS;
  trace(`${path}: ${what}`);
  const expected = `${folder}/expected.raw`;
  readReal(random, path, content);
  if (!isPlain || isOdd || content.sectors > MOST_SECTORS) return;
  putExpected(expected, content);
  const vpc = `driver=vpc,force_size_calc=current_size,file.driver=file,file.filename=${path}`;
  const raw = `driver=raw,file.driver=file,file.filename=${expected}`;
  const { code, stdout, stderr } = new Deno.Command("qemu-img", {
    args: ["compare", "--image-opts", raw, vpc],
  }).outputSync();
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  if (code === 0) return count("images that qemu reads alike");
  if (code > 1 && REFUSALS.some((refusal) => refusal.test(text))) {
    return count("images that qemu refuses");
  }
  throw new Error(`qemu-img compare: ${text}`);
}

function readReal(random: Random, path: string, content: Content): void {
  const opened = openChain(path);
  try {
    compareOffline(random, opened, { path, content });
  } finally {
    opened.close();
  }
}

function putExpected(path: string, content: Content): void {
  const file = Deno.openSync(path, { write: true, create: true, truncate: true });
  file.truncateSync(content.sectors * SECTOR_BYTES);
  for (const { sector, count, stamp } of content.runs()) {
    file.seekSync(sector * SECTOR_BYTES, Deno.SeekMode.Start);
    file.writeSync(stamped(sector, count, stamp));
  }
  file.close();
}
