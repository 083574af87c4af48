/**
 * Runs scripts of tests/vm/guest in one machine, with their facts as tests.
 *
 * @module
 */

import { needs } from "../../support/tools.ts";
import { testFacts } from "./facts.ts";
import { type MachineFiles, prepareLayer, prepareMachine, runMachine } from "./machine.ts";

const GUEST = new URL("../guest", import.meta.url).pathname;

/** Less than the time limit of a test file, so that the console is printed. */
const TIMEOUT_MS = 28 * 60_000;

/** A script in the machine. */
export interface Part {
  /** Prefix of the names of its facts. */
  readonly name: string;
  /** Its name in tests/vm/guest, and its arguments. */
  readonly command: readonly string[];
  /** Debian packages that the machine gets for it. Where they cannot be had, it is skipped. */
  readonly packages?: readonly string[];
}

/**
 * Runs scripts in parallel, with an empty disk of 1 GiB, /dev/vdb, and registers their facts as
 * tests. Where no machine is possible, each script is one skipped test with the reason.
 *
 * @returns The folder that was `$OUT`, removed after the tests; null without a machine.
 */
export async function testInMachine(wanted: readonly Part[]): Promise<string | null> {
  const prepared = await prepare();
  if (typeof prepared === "string") {
    for (const { name } of wanted) skipPart(name, prepared);
    return null;
  }
  const layers = [...prepared.layers];
  const parts: Part[] = [];
  for (const part of wanted) {
    try {
      if (part.packages !== undefined) layers.push(await prepareLayer(part.name, part.packages));
      parts.push(part);
    } catch (error) {
      skipPart(part.name, skippedBy(error));
    }
  }
  const files = { ...prepared, layers };
  const outFolder = Deno.makeTempDirSync({ prefix: "blktap-vm-out-" });
  Deno.test.afterAll(() => Deno.removeSync(outFolder, { recursive: true }));
  const result = await runMachine({
    files,
    script: `${GUEST}/suite.sh`,
    args: parts.flatMap(({ name, command }, index) => [
      ...index > 0 ? ["--"] : [],
      `${name}=${command[0]}`,
      ...command.slice(1),
    ]),
    outFolder,
    disksMib: [1024],
    timeoutMs: TIMEOUT_MS,
  });
  const scripts = parts.map(({ name, command }) => ({ name, path: `${GUEST}/${command[0]}` }));
  testFacts(scripts, outFolder, result);
  return outFolder;
}

/** The machine's files, or the reason why there are none, as the end of a test's name. */
async function prepare(): Promise<MachineFiles | string> {
  const { ignore, suffix } = needs("dist/tap-ctl", "mkfs.ext4", "fio");
  if (ignore) {
    return suffix;
  }
  try {
    return await prepareMachine();
  } catch (error) {
    return skippedBy(error);
  }
}

function skippedBy(error: unknown): string {
  return ` (skipped: ${error instanceof Error ? error.message : error})`;
}

function skipPart(name: string, why: string): void {
  Deno.test({ name: `${name}: in a virtual machine${why}`, ignore: true, fn() {} });
}
