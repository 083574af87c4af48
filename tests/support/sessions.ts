/**
 * Console sessions in documents, run by tests: each `console` block has commands after `$ ` and, below
 * each, what it prints. Process numbers, times and the like may differ.
 *
 * @module
 */
import assert from "node:assert/strict";
import { run } from "./tools.ts";

/** The folder that sessions work in, as the documents have it. */
const TOUR = "/tmp/tour";

/** A command, and what it prints. */
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

/** Without what differs from one run to the next. */
function lasting(text: string): string {
  return text
    .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, "UUID")
    .replace(/(pid=|"pid": |\/nbd|process )\d+/g, "$1PID");
}

/** One script of all steps, which marks where the output of each begins, and ends with the first that fails. */
function scriptOf(steps: readonly Step[], mark: string): string {
  const marked = steps.map(({ command }) => `printf '%s\\n' ${mark}\n${command}\n`);
  return `set -euo pipefail\nexec 2>&1\n${marked.join("")}`;
}

/**
 * Runs a session in one shell. Throws where something is not as the document has it.
 *
 * @param cwd The folder that it runs in.
 * @param tour A folder that stands for the one that the session works in.
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
