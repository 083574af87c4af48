/**
 * The built vhd-util on mutated images in files: a process for each call.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import { fileNameOf } from "../../../../src/files/paths.ts";
import { osStorage } from "../../../../src/files/storage.ts";
import { binaryPath, findTool } from "../../../support/tools.ts";
import type { SearchContext } from "../../search.ts";
import { hold } from "../images/finding.ts";
import { drawMutations } from "../images/mutate.ts";
import { pick, putWorld } from "../images/mutations.ts";
import { worldOf, WORLDS } from "../images/worlds.ts";
import type { Target } from "../target.ts";

const CASES = 5;
const SECONDS = "20";
const VHD_UTIL = binaryPath("vhd-util");

/** Calls that only read, and calls that may write to the image, with `@` for its path. */
const READS = [
  ["query", "-n", "@", "-vspfmdSa"],
  ["read", "-n", "@", "-p", "-a", "-B"],
  ["read", "-n", "@", "-r", "0", "-c", "64"],
  ["check", "-n", "@", "-pb"],
  ["scan", "-a", "-p", "-M", "@"],
  ["map", "-n", "@"],
  ["tree", "@"],
];
const WRITES = [
  ["repair", "-n", "@"],
  ["resize", "-n", "@", "-s", "8", "-j", "@.journal"],
  ["fill", "-n", "@", "-b", "-t", "100"],
  ["modify", "-n", "@", "-z"],
  ["set", "-n", "@", "-f", "hidden", "-v", "1"],
  ["snapshot", "-n", "@.child", "-p", "@"],
  ["copy", "-n", "@", "-N", "@.copy"],
  ["coalesce", "-n", "@"],
];

/** Signs of a fault of the program in what it prints. */
const FAULT = /Uncaught|TypeError|RangeError|AssertionError|panicked|at file:|\.ts:\d+:\d+/;

class VhdUtilTarget implements Target {
  readonly #has = findTool(VHD_UTIL) !== undefined;

  run(random: Random, context: SearchContext): number {
    if (!this.#has) {
      context.count("vhd-util: skipped, as dist/vhd-util is not built");
      return 1;
    }
    for (let i = 0; i < CASES; i++) call(random, context);
    return CASES;
  }
}

function call(random: Random, context: SearchContext): void {
  const world = worldOf(pick(random, WORLDS));
  const mutations = drawMutations(random, world).filter((mutation) =>
    // Copies of terabytes of zeros take long.
    !("size" in mutation) || mutation.size < 2 ** 30
  );
  const folder = Deno.makeTempDirSync({ dir: context.folder });
  try {
    const nameOf = (path: string): string => `${folder}/${fileNameOf(path)}`;
    putWorld(osStorage, world, mutations, nameOf);
    const path = nameOf([...world.files.keys()][0]);
    const isRead = random.chance(0.6);
    const words = pick(random, isRead ? READS : WRITES).map((word) => word.replace("@", path));
    const what = `vhd-util ${words.join(" ")}; ${world.name}, ${JSON.stringify(mutations)}`;
    context.trace(what);
    const before = isRead ? contents(folder) : null;
    runOne(words, what);
    if (before !== null) hold(contents(folder) === before, () => `It changes a file: ${what}`);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

function runOne(words: readonly string[], what: string): void {
  const { code, signal, stdout, stderr } = new Deno.Command("timeout", {
    args: [SECONDS, VHD_UTIL, ...words],
    stdin: "null",
  }).outputSync();
  const text = new TextDecoder().decode(stderr);
  hold(code !== 124, () => `It runs for ${SECONDS} s: ${what}`);
  hold(signal === null && code < 128, () => `It ends with status ${code}: ${text}; ${what}`);
  const printed = FAULT.exec(text) ??
    FAULT.exec(new TextDecoder().decode(stdout.subarray(0, 4096)));
  hold(printed === null, () => `It prints: ${text}; ${what}`);
}

/** The names, sizes and bytes of the files of a folder. */
function contents(folder: string): string {
  return [...Deno.readDirSync(folder)].map(({ name }) => {
    const path = `${folder}/${name}`;
    const { size } = Deno.statSync(path);
    return `${name} ${size} ${size < 2 ** 20 ? Deno.readFileSync(path).toHex() : ""}`;
  }).sort().join("\n");
}

/** The target. */
export const target: Target = new VhdUtilTarget();
