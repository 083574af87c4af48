/**
 * The same images in files, as qemu reads them. What qemu reads, we read alike, or refuse for a reason
 * that docs/images.md lists. What we write into an image that we read, qemu reads too.
 *
 * qemu has ways of its own, which are left out: it knows no parents and ignores bitmaps; it reads the
 * footer at byte 0 of an image that has one, where we read the one at the end; it does not look at
 * checksums of headers.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { SystemError } from "../../../../ffi/errno.ts";
import { fileNameOf } from "../../../../src/files/paths.ts";
import { osStorage } from "../../../../src/files/storage.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { testBit } from "../../../../src/vhd/format/bitmap.ts";
import { isAllocated, readBitmap } from "../../../../src/vhd/image/block.ts";
import { openChain, type VhdChain } from "../../../../src/vhd/image/chain.ts";
import { readRange } from "../../../../src/vhd/image/read.ts";
import { finishWriting, writeRange } from "../../../../src/vhd/write.ts";
import { hasTool } from "../../../support/tools.ts";
import type { SearchContext } from "../../search.ts";
import { attempt, hold } from "../images/finding.ts";
import { contentOf } from "../images/build_image.ts";
import { drawMutations } from "../images/mutate.ts";
import { pick, putWorld } from "../images/mutations.ts";
import { worldOf } from "../images/worlds.ts";
import type { Target } from "../target.ts";

const CASES = 10;
const SECTOR = 512;
/** Larger disks take qemu too long. */
const MOST_BYTES = 8 * 1024 * 1024;
/** Images without parents. */
const ALONE = ["dynamic", "fixed", "foreign", "header last", "encrypted", "reserve"];

/** The reasons of a refusal that docs/images.md lists: our message, and the words of the list. */
const REASONS: readonly (readonly [RegExp, string])[] = [
  [/footer at byte 0 either|too short for a footer/, "no valid footer at the end"],
  [/is not fixed \(2\)/, "a type other than 2, 3 and 4"],
  [/is not version 1.0/, "a header of a version other than 1.0"],
  [/is not a number of whole sectors|beyond what the format can hold/, "no sectors, a size"],
  [/bytes of the file hold/, "a fixed image whose file is shorter than the disk"],
  [/bitmaps in another bit order/, "tapdisk's version 0.1"],
  [/header\.checksum/, "a header with a wrong checksum"],
  [
    /does not point to a header|header\.cookie|is no place for the BAT|past the end of the file$/,
    "a header or block table outside of the file",
  ],
  [/header\.maxBatEntries .*reaches past/, "more than 16 Mi entries in the block table"],
  [/is less than the \d+ blocks/, "fewer entries in the block table"],
  [/is not a power of two/, "blocks that are not a power of two"],
  [/Cannot follow the chain/, "a parent that is not found"],
  [/makes a block that/, "a block outside of the file, or over the header"],
];

const DOCUMENT = new URL("../../../../docs/images.md", import.meta.url);

class QemuTarget implements Target {
  readonly #has = hasTool("qemu-img");

  setUp(): void {
    const text = Deno.readTextFileSync(DOCUMENT);
    for (const [, words] of REASONS) {
      hold(text.includes(words), `docs/images.md does not list: ${words}`);
    }
  }

  run(random: Random, context: SearchContext): number {
    if (!this.#has) {
      context.count("qemu: skipped, as qemu-img is not installed");
      return 1;
    }
    for (let i = 0; i < CASES; i++) compare(random, context);
    return CASES;
  }
}

/** Compares one mutated image. */
function compare(random: Random, { folder, count, trace }: SearchContext): void {
  const world = worldOf(pick(random, ALONE));
  const mutations = drawMutations(random, world);
  const path = `${folder}/${fileNameOf([...world.files.keys()][0])}`;
  putWorld(osStorage, world, mutations, () => path);
  trace(`${world.name}: ${JSON.stringify(mutations)}`);
  if (!osStorage.exists(path)) return;
  const chain = attempt(() => openChain(path));
  const what = `${world.name}, ${JSON.stringify(mutations)}`;
  if (chain instanceof SystemError) {
    if (readByQemu(path, `${folder}/raw`) === null) return count("qemu: both refuse");
    const known = REASONS.some(([reason]) => reason.test(chain.message));
    hold(known, `qemu reads what we refuse: ${chain.message}; ${what}`);
    return count("qemu: we refuse, for a reason that is listed");
  }
  try {
    if (chain.depth > 1 || chain.images[0].type === "differencing") return;
    if (!hasOneFooter(chain) || chain.images[0].sizeBytes > MOST_BYTES) return;
    const verdict = compareContent(chain, path, { raw: `${folder}/raw`, what });
    count(verdict);
  } finally {
    chain.close();
  }
  if (random.chance(0.3)) writeAndCompare(random, path, { raw: `${folder}/raw`, what });
}

/** Whether qemu and we read the same footer. */
function hasOneFooter({ images: [image] }: VhdChain): boolean {
  if (image.footerSource !== "primary") return image.footerSource === "backup";
  if (image.type === "fixed") return true;
  const [first, last] = [new Uint8Array(SECTOR), new Uint8Array(SECTOR)];
  image.file.readAt(first, 0);
  image.file.readAt(last, image.file.sizeBytes() - SECTOR);
  return first.every((byte, i) => byte === last[i]);
}

function compareContent(
  chain: VhdChain,
  path: string,
  { raw, what }: { raw: string; what: string },
): string {
  const theirs = readByQemu(path, raw);
  if (theirs === null) return "qemu: only qemu refuses";
  const { sizeBytes } = chain.images[0];
  hold(
    theirs.length === sizeBytes,
    () => `qemu reads ${theirs.length} of ${sizeBytes} bytes; ${what}`,
  );
  const ours = new Uint8Array(sizeBytes);
  readRange(chain, ours, 0);
  for (let sector = 0; sector < sizeBytes / SECTOR; sector++) {
    const [at, end] = [sector * SECTOR, (sector + 1) * SECTOR];
    const isSame = Buffer.compare(ours.subarray(at, end), theirs.subarray(at, end)) === 0;
    hold(isSame || !isHeld(chain, sector), () => `Sector ${sector} differs from qemu's; ${what}`);
  }
  return "qemu: both read the same";
}

/** Whether the image holds a sector: qemu also reads those of a block that it does not hold. */
function isHeld({ images: [image] }: VhdChain, sector: number): boolean {
  if (image.type === "fixed") return true;
  const block = Math.floor(sector / image.sectorsPerBlock);
  return !isAllocated(image, block) ||
    testBit(readBitmap(image, block), sector - block * image.sectorsPerBlock);
}

/** What qemu reads; null where it refuses, and for a disk that takes long. */
function readByQemu(path: string, raw: string): Uint8Array | null {
  if (sizeAtStart(path) > MOST_BYTES) return null;
  const image = `driver=vpc,force_size_calc=current_size,file.driver=file,file.filename=${path}`;
  const { success } = new Deno.Command("timeout", {
    args: ["20", "qemu-img", "convert", "--image-opts", image, "-O", "raw", raw],
    stdout: "null",
    stderr: "null",
  }).outputSync();
  return success && Deno.statSync(raw).size <= MOST_BYTES ? Deno.readFileSync(raw) : null;
}

/** The size of the disk by the footer at byte 0, which qemu reads first. */
function sizeAtStart(path: string): number {
  const file = osStorage.open(path, "read");
  const bytes = new Uint8Array(SECTOR);
  file.readAt(bytes, 0);
  file.close();
  const isFooter = new TextDecoder().decode(bytes.subarray(0, 8)) === "conectix";
  return isFooter ? Number(new DataView(bytes.buffer).getBigUint64(48)) : 0;
}

function writeAndCompare(random: Random, path: string, names: { raw: string; what: string }): void {
  const chain = openChain(path, { readOnly: false });
  try {
    const [image] = chain.images;
    const sectors = image.sizeBytes / SECTOR;
    const sector = random.below(sectors);
    const length = Math.min(sectors - sector, 1 + random.below(40));
    writeRange(image, contentOf(random.bits(), length * SECTOR), sector * SECTOR);
    finishWriting(image);
    compareContent(chain, path, names);
  } finally {
    chain.close();
  }
}

/** The target. */
export const target: Target = new QemuTarget();
