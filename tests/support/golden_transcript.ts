/**
 * Transcripts of the reference's programs: commands, their output and exit statuses. A program of ours
 * is run in this process for the same commands and must answer alike.
 *
 * @module
 */
import assert from "node:assert/strict";
import { run } from "./tools.ts";
import type { ProgramResult } from "./vhd.ts";

/** A command of a transcript with its output; `rc=` and the exit status are the last line. */
interface Block {
  readonly command: string;
  readonly lines: string[];
}

/** A program that a transcript is about. */
export interface TranscriptProgram {
  readonly name: string;
  readonly run: (...args: string[]) => Promise<ProgramResult>;
  /** Whether the transcript has what the program prints to standard error. */
  readonly hasErrors: boolean;
  /** Replaces what differs from run to run in all that our program printed. */
  readonly normalise?: (transcript: string) => string;
}

/** The commands of a transcript. Lines that begin with `# ` are headings. */
function blocksOf(transcript: string): Block[] {
  const blocks: Block[] = [];
  for (const line of transcript.split("\n")) {
    if (line.startsWith("$ ")) blocks.push({ command: line.slice(2), lines: [] });
    else if (!line.startsWith("# ") && line.trim() !== "") blocks.at(-1)?.lines.push(line);
  }
  return blocks;
}

/** A body of `?` is one that the reference gets wrong; only the status counts. */
function matches(expected: readonly string[], actual: readonly string[]): boolean {
  const bodyOf = (lines: readonly string[]) => lines.filter((line) => !line.startsWith("rc="));
  if (expected.at(-1) !== actual.at(-1)) return false;
  const body = bodyOf(expected);
  return body[0] === "?" || body.join("\n") === bodyOf(actual).join("\n");
}

/** Runs one command: the program in this process, the rest of a pipe and all others in a shell. */
async function runLine(program: TranscriptProgram, line: string): Promise<string> {
  const [first, ...pipe] = line.split(" | ");
  const [command, ...args] = first.split(" ").map((word) => word.replaceAll("'", ""));
  if (command !== program.name) {
    const { stdout, code } = await run("bash", ["-c", line]);
    return `${stdout}rc=${code}\n`;
  }
  const { code, stdout, stdoutBytes, stderr } = await program.run(...args);
  let [text, status] = [stdout, code];
  if (pipe.length > 0) {
    const piped = await run("bash", ["-c", pipe.join(" | ")], { stdin: stdoutBytes });
    [text, status] = [piped.stdout, piped.code];
  }
  const printed = text.replaceAll("\0", "").replace(/\n*$/, "\n").replace(/^\n/, "");
  const told = program.hasErrors ? stderr.split("\n").filter(Boolean) : [];
  return `${printed}${told.map((error) => `2> ${error}\n`).join("")}rc=${status}\n`;
}

/**
 * Runs the commands of a transcript in the working folder, a test step for each.
 *
 * @param expected What the reference answered.
 * @param isCovered Whether a command is run.
 */
export async function holdToTranscript(
  test: Deno.TestContext,
  program: TranscriptProgram,
  { expected, isCovered = () => true }: {
    expected: string;
    isCovered?: (command: string) => boolean;
  },
): Promise<void> {
  const blocks = blocksOf(expected).filter(({ command }) => isCovered(command));
  let transcript = "";
  for (const { command } of blocks) {
    transcript += `$ ${command}\n${await runLine(program, command)}`;
  }
  await compareBlocks(test, blocks, blocksOf(program.normalise?.(transcript) ?? transcript));
}

/** Compares two transcripts of the same commands, a test step for each. */
export async function assertTranscript(
  test: Deno.TestContext,
  { expected, actual }: { expected: string; actual: string },
): Promise<void> {
  const [blocks, found] = [blocksOf(expected), blocksOf(actual)];
  assert.deepEqual(found.map(({ command }) => command), blocks.map(({ command }) => command));
  await compareBlocks(test, blocks, found);
}

async function compareBlocks(
  test: Deno.TestContext,
  expected: readonly Block[],
  actual: readonly Block[],
): Promise<void> {
  for (const [index, { command, lines }] of expected.entries()) {
    await test.step(command, () => {
      if (!matches(lines, actual[index].lines)) assert.deepEqual(actual[index].lines, lines);
    });
  }
}

/** Runs `body` in a working folder of its own, which it gets. */
export async function inWorkingFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
  const before = Deno.cwd();
  Deno.chdir(folder);
  try {
    await body(Deno.realPathSync(folder));
  } finally {
    Deno.chdir(before);
    Deno.removeSync(folder, { recursive: true });
  }
}
