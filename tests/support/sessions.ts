/**
 * Runs the console sessions of documents as tests. Each `console` block has commands after `$ ` and
 * the expected output of each below it. Process numbers, times and the like may differ.
 *
 * @module
 */
import assert from "node:assert/strict";
import { run } from "./tools.ts";

/** The working folder of sessions in the documents. */
const TOUR = "/tmp/tour";

export interface Step {
  readonly command: string;
  readonly output: string;
}

/** The commands of all `console` blocks in order. */
export function stepsOf(markdown: string): Step[] {
  const steps: Step[] = [];
  for (const block of markdown.matchAll(/^```console\n(.*?)^```$/gms)) {
    for (const step of block[1].matchAll(/^\$ (.*)\n((?:(?!\$ ).*\n)*)/gm)) {
      steps.push({ command: step[1], output: step[2] });
    }
  }
  return steps;
}

/** The text without the parts that differ between runs. */
function lasting(text: string): string {
  return text
    .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, "UUID")
    .replace(/(pid=|"pid": |\/nbd|process )\d+/g, "$1PID");
}

/** One script of all steps. It marks the start of each output and stops at the first failure. */
function scriptOf(steps: readonly Step[], mark: string): string {
  const marked = steps.map(({ command }) => `printf '%s\\n' ${mark}\n${command}\n`);
  return `set -euo pipefail\nexec 2>&1\n${marked.join("")}`;
}

/**
 * Runs a session in one shell. Throws when an output differs from the document.
 *
 * @param cwd The working folder.
 * @param tour The folder that replaces the working folder of the session.
 */
export async function runSession(
  steps: readonly Step[],
  { cwd, tour }: { cwd: string; tour: string },
): Promise<void> {
  const mark = "___next_command___";
  const script = scriptOf(steps, mark).replaceAll(TOUR, tour);
  const { code, stdout } = await run("bash", ["-c", script], {
    cwd,
    env: { BLKTAP_LOG_DIR: "" },
  });
  const outputs = stdout.split(`${mark}\n`).slice(1);
  outputs.forEach((output, index) => {
    const { command, output: expected } = steps[index];
    assert.equal(lasting(output.replaceAll(tour, TOUR)), lasting(expected), `Output of ${command}`);
  });
  assert.equal(code, 0, `Status of ${steps[outputs.length - 1]?.command}`);
  assert.equal(outputs.length, steps.length);
}
