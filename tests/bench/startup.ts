/**
 * Measures the start of `vhd-util query` and of a compiled empty program.
 *
 * @module
 */

import { binaryPath, runOk, withTempDir } from "../support/tools.ts";

const ROUNDS = 41;
const LIMIT_RATIO = 1.4;

interface Candidate {
  readonly name: string;
  readonly command: string;
  readonly args: string[];
  readonly tookMs: number[];
}

/** Compiles an empty program in the way of `scripts/build`. */
async function compileEmpty(folder: string): Promise<string> {
  const source = `${folder}/empty.js`;
  const program = `${folder}/empty`;
  Deno.writeTextFileSync(source, "export {};\n");
  const toolchain = new URL("../../scripts/toolchain", import.meta.url).pathname;
  const denort = (await runOk(toolchain, ["denort"])).trim();
  await runOk(Deno.execPath(), [
    ...["compile", "--quiet", "--no-config", "--no-code-cache", "--allow-all"],
    ...["--output", program, source],
  ], { env: { DENORT_BIN: denort } });
  return program;
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

async function measure(candidates: readonly Candidate[]): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) {
    for (const { command, args, tookMs } of candidates) {
      const startMs = performance.now();
      await new Deno.Command(command, { args, stdout: "null" }).output();
      tookMs.push(performance.now() - startMs);
    }
  }
}

async function main(): Promise<number> {
  return await withTempDir(async (folder) => {
    const vhdUtil = binaryPath("vhd-util");
    const image = `${folder}/disk.vhd`;
    await runOk(vhdUtil, ["create", "-n", image, "-s", "1024"]);
    const empty = await compileEmpty(folder);
    const candidates: Candidate[] = [
      { name: "an empty program", command: empty, args: [], tookMs: [] },
      { name: "blktap --version", command: binaryPath("blktap"), args: ["--version"], tookMs: [] },
      {
        name: "vhd-util query -vsfp",
        command: vhdUtil,
        args: ["query", "-vsfp", "-n", image],
        tookMs: [],
      },
    ];
    await measure(candidates);
    const emptyMs = median(candidates[0].tookMs);
    let worst = 0;
    for (const { name, tookMs } of candidates) {
      const ratio = median(tookMs) / emptyMs;
      worst = Math.max(worst, ratio);
      console.log(
        `${name.padEnd(22)} median ${median(tookMs).toFixed(1)} ms, ` +
          `best ${Math.min(...tookMs).toFixed(1)} ms, ${ratio.toFixed(2)} x`,
      );
    }
    console.log(`at most ${LIMIT_RATIO} x is allowed`);
    return worst > LIMIT_RATIO ? 1 : 0;
  });
}

Deno.exit(await main());
