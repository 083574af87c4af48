/**
 * Runs scripts in the first domain of a machine with Xen, with their facts as tests.
 *
 * @module
 */

import type { Needs } from "../../support/tools.ts";
import { testFacts } from "../support/facts.ts";
import type { MachineFiles } from "../support/machine.ts";
import type { GuestContent } from "./guest_content.ts";
import { makeImages } from "./images.ts";
import { fillOut, prepareXen, runXen, type XenScript, type XenVersion } from "./xen_machine.ts";

const HERE = new URL(".", import.meta.url).pathname;

/** What runs in a machine. */
export interface XenSuite {
  readonly version: XenVersion;
  /** The tools without which all is skipped. */
  readonly needed: Needs;
  readonly scripts: readonly XenScript[];
  readonly content: GuestContent;
  /** Whether the guests make an ext4. */
  readonly withExt4?: boolean;
  /** Writes more for the scripts into the folder that they share. */
  fill?(out: string): void;
  /** Registers tests of what the scripts left there. */
  testImages(out: string): void;
}

/** Runs a suite. Where no machine is possible, each script is one skipped test with the reason. */
export async function testXen(suite: XenSuite): Promise<void> {
  const files = await prepare(suite);
  if (typeof files === "string") {
    for (const { name } of suite.scripts) {
      const test = `${name}: a disk of a guest of Xen ${suite.version}${files}`;
      Deno.test({ name: test, ignore: true, fn() {} });
    }
    return;
  }
  const out = Deno.makeTempDirSync({ prefix: "blktap-xen-" });
  await fillOut(out, files, suite);
  await makeImages(out);
  suite.fill?.(out);
  const result = await runXen(out, files, suite.version, suite.scripts);
  const scripts = suite.scripts.map(({ name, script }) => ({ name, path: `${HERE}${script}` }));
  testFacts([{ name: "xen", path: `${HERE}dom0.sh` }, ...scripts], out, result);
  suite.testImages(out);
  Deno.test.afterAll(() => Deno.removeSync(out, { recursive: true }));
}

/** The machine's files, or the reason why there are none, as the end of a test's name. */
async function prepare({ needed, version }: XenSuite): Promise<MachineFiles | string> {
  if (needed.ignore) return needed.suffix;
  try {
    return await prepareXen(version);
  } catch (error) {
    return ` (skipped: ${error instanceof Error ? error.message : error})`;
  }
}
