/**
 * The console sessions of the README and of `docs/`, run by a test: each `console` block has commands
 * after `$ ` and, below each, what it prints. Process numbers, times and the like may differ.
 *
 * @module
 */
import assert from "node:assert/strict";
import { ControlBench } from "../support/control.ts";
import { needs, run, withTempDir } from "../support/tools.ts";

const ROOT = new URL("../../", import.meta.url).pathname;

/** The folder that the tour works in, as the README has it. */
const TOUR = "/tmp/tour";

interface Step {
  readonly command: string;
  readonly output: string;
}

/** The commands of all `console` blocks in order. */
function stepsOf(markdown: string): Step[] {
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

const { ignore, suffix } = needs(
  "dist/tap-ctl",
  "bash",
  "nbdcopy",
  "nbdinfo",
  "qemu-img",
  "qemu-io",
);

/** Documents with `console` blocks. */
const DOCUMENTS = ["README.md", "docs/images.md"];

for (const document of DOCUMENTS) {
  Deno.test({
    name: `The sessions in ${document} do what it says${suffix}`,
    ignore,
    async fn() {
      const steps = stepsOf(Deno.readTextFileSync(`${ROOT}${document}`));
      assert.ok(steps.length > 5, `${document} has ${steps.length} commands`);
      await withTempDir(async (folder) => {
        const tour = `${folder}/tour`;
        try {
          await take(steps, tour);
        } finally {
          await new ControlBench(tour).end();
        }
      });
    },
  });
}

async function take(steps: readonly Step[], tour: string): Promise<void> {
  const mark = "___next_command___";
  const script = scriptOf(steps, mark).replaceAll(TOUR, tour);
  const { code, stdout } = await run("bash", ["-c", script], {
    cwd: ROOT,
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
