import assert from "node:assert/strict";
import { needs, run } from "../support/tools.ts";
import { VHD_UTIL } from "../../src/cli/vhd_util/main.ts";
import { goldenImage, goldenText, vhdUtil } from "../support/vhd.ts";

interface Block {
  readonly command: string;
  readonly lines: string[];
}

/** The commands of a transcript with the output of each; `rc=` is the last line. */
function blocksOf(transcript: string): Block[] {
  const blocks: Block[] = [];
  for (const line of transcript.split("\n")) {
    if (line.startsWith("$ ")) blocks.push({ command: line.slice(2), lines: [] });
    else if (!line.startsWith("# ") && line.trim() !== "") blocks.at(-1)?.lines.push(line);
  }
  return blocks;
}

/**
 * Replaces the parts that differ between runs: folder, UUIDs in order of appearance, times,
 * checksums.
 */
function normalise(transcript: string, folder: string): string {
  const seen = new Map<string, string>();
  const numbered = (uuid: string): string => {
    if (/^[0-]+$/.test(uuid)) return uuid;
    if (!seen.has(uuid)) seen.set(uuid, `UUID${seen.size + 1}`);
    return seen.get(uuid) ?? uuid;
  };
  return transcript
    .replaceAll(folder, "DIR")
    .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g, numbered)
    .replace(/[SMTWF][a-z]{2} [JFMASOND][a-z]{2} +[0-9]+ [0-9:]{8} [0-9]{4}/g, "TIME")
    .replace(/0x[0-9a-f]{8}\|0x[0-9a-f]{8}/g, "0xSUM|0xSUM");
}

function matches(expected: readonly string[], actual: readonly string[]): boolean {
  const bodyOf = (lines: readonly string[]) => lines.filter((line) => !line.startsWith("rc="));
  if (expected.at(-1) !== actual.at(-1)) return false;
  const body = bodyOf(expected);
  return body[0] === "?" || body.join("\n") === bodyOf(actual).join("\n");
}

/** Runs one line of the scenario: vhd-util in this process, the rest of a pipe in a shell. */
async function runLine(line: string): Promise<string> {
  const [first, ...pipe] = line.split(" | ");
  const [command, ...args] = first.split(" ").map((word) => word.replaceAll("'", ""));
  if (command !== "vhd-util") {
    const { stdout, code } = await run("bash", ["-c", line]);
    return `${stdout}rc=${code}\n`;
  }
  const { code, stdout, stdoutBytes, stderr } = await vhdUtil(...args);
  let [text, status] = [stdout, code];
  if (pipe.length > 0) {
    const piped = await run("bash", ["-c", pipe.join(" | ")], { stdin: stdoutBytes });
    [text, status] = [piped.stdout, piped.code];
  }
  const printed = text.replaceAll("\0", "").replace(/\n*$/, "\n").replace(/^\n/, "");
  const errors = stderr.split("\n").filter(Boolean).map((error) => `2> ${error}\n`).join("");
  return `${printed}${errors}rc=${status}\n`;
}

/** Lines that print the result of an earlier subcommand, which may not be implemented. */
const DEPENDENT: ReadonlyMap<string, string> = new Map([
  ["vhd-util query -f -n a.vhd", "set"],
  ["vhd-util read -n base.vhd -r 64 -c 1 | xxd | head -2", "coalesce"],
  ["vhd-util read -n base.vhd -r 8192 -c 1 | xxd | head -2", "coalesce"],
]);

function isCovered(line: string): boolean {
  const name = DEPENDENT.get(line) ?? /^vhd-util ([a-z]+)/.exec(line)?.[1];
  return name === undefined || VHD_UTIL.subcommands.has(name);
}

const { ignore, suffix } = needs("bash", "xxd");

Deno.test({
  name: `vhd-util answers as the reference does, command by command${suffix}`,
  ignore,
  async fn(test) {
    const folder = Deno.makeTempDirSync();
    const before = Deno.cwd();
    Deno.chdir(folder);
    try {
      Deno.writeFileSync("base.vhd", await goldenImage("base.vhd"));
      Deno.writeFileSync("child.vhd", await goldenImage("child.vhd"));
      const expected = blocksOf(goldenText("vhd-util.expected"))
        .filter(({ command }) => isCovered(command));
      let transcript = "";
      for (const { command } of expected) {
        transcript += `$ ${command}\n${await runLine(command)}`;
      }
      const actual = blocksOf(normalise(transcript, Deno.realPathSync(folder)));
      for (const [index, { command, lines }] of expected.entries()) {
        await test.step(command, () => {
          if (!matches(lines, actual[index].lines)) assert.deepEqual(actual[index].lines, lines);
        });
      }
    } finally {
      Deno.chdir(before);
      Deno.removeSync(folder, { recursive: true });
    }
  },
});
