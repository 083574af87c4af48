import assert from "node:assert/strict";
import * as commander from "commander";
import {
  Command,
  CommanderError,
  InvalidArgumentError,
  NotPlain,
  Option,
} from "../../src/cli/plain_command.ts";
import { QUICK_CALLS } from "../../src/cli/quick_calls.ts";

/** What both classes of that name can do. */
type Either = Pick<commander.Command, "option" | "requiredOption" | "addOption" | "action">;

function number(text: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  throw new InvalidArgumentError("It must be a number.");
}

/** Options of each kind that tap-ctl has. */
function define<Kind extends Either>(command: Kind, option: (flags: string) => commander.Option) {
  command
    .requiredOption("-m, --minor <minor>", "", number)
    .requiredOption("-a, --args <type:/path>", "")
    .option("-R, --read-only", "")
    .option("-D, --no-direct", "")
    .option("--tls-psk <file>", "")
    .option("-t, --timeout <seconds>", "", number)
    .addOption(option("--device <kind>").choices(["none", "auto"]).default("none"))
    .addOption(option("--retry <which>").choices(["all", "transient"]))
    .addOption(option("-d, --name <name>").hideHelp())
    .addOption(
      option("--parent-root <folder>")
        .argParser((folder: string, before: readonly string[] = []) => [...before, folder]),
    );
  return command;
}

/** What commander reads; null where it prints an error or help. */
function read(args: readonly string[]): Record<string, unknown> | null {
  const command = define(
    new commander.Command("x").exitOverride().allowExcessArguments(false)
      .configureOutput({ writeErr: () => {}, writeOut: () => {} }).action(() => {}),
    (flags) => new commander.Option(flags),
  );
  try {
    return command.parse(args, { from: "user" }).opts();
  } catch (error) {
    assert.ok(error instanceof commander.CommanderError);
    return null;
  }
}

/** What the plain command reads; null where it leaves the line to commander. */
function readPlainly(args: readonly string[]): Record<string, unknown> | null {
  const command = new Command("x");
  define(
    command as unknown as commander.Command,
    (flags) => new Option(flags) as unknown as commander.Option,
  );
  try {
    return command.valuesOf(args);
  } catch (error) {
    assert.ok(error instanceof NotPlain && !(error instanceof CommanderError));
    return null;
  }
}

const LINES: readonly string[] = [
  "-m 5 -a vhd:/x",
  "-a vhd:/x -m 0 -R",
  "--args vhd:/x --minor 7 --read-only --no-direct",
  "-m 5 -a vhd:/x -D -t 3 --device auto --retry transient",
  "-m 5 -a -R",
  "-m 5 -a --",
  "-m 5 -a vhd:/x --tls-psk /keys -d name",
  "-m 5 -a vhd:/x --parent-root /srv",
];

const NOT_PLAIN: readonly string[] = [
  "",
  "-m 5",
  "-m",
  "-m5 -a vhd:/x",
  "-m 5 --args=vhd:/x",
  "-m five -a vhd:/x",
  "-m 5 -m 6 -a vhd:/x",
  "-m 5 -a vhd:/x -RD",
  "-m 5 -a vhd:/x --read",
  "-m 5 -a vhd:/x -x",
  "-m 5 -a vhd:/x -- word",
  "-m 5 -a vhd:/x word",
  "-m 5 -a vhd:/x --device tape",
  "-m 5 -a vhd:/x -t",
  "-m 5 -a vhd:/x --parent-root /a --parent-root /b",
  "-m 5 -a vhd:/x -h",
  "--help",
];

Deno.test("plain command lines are read as commander reads them", () => {
  for (const line of LINES) {
    const args = line.split(" ");
    const values = readPlainly(args);
    assert.notEqual(values, null, line);
    assert.deepEqual(values, read(args), line);
  }
});

Deno.test("all other command lines are left to commander", () => {
  for (const line of NOT_PLAIN) {
    assert.equal(readPlainly(line === "" ? [] : line.split(" ")), null, line);
  }
});

Deno.test("random lines of known words are read as commander reads them, or left to it", () => {
  const words = [...new Set([...LINES, ...NOT_PLAIN].flatMap((line) => line.split(" ")))];
  let plain = 0;
  let state = 1;
  const random = (below: number): number => {
    state = (state * 48271) % 0x7fff_ffff;
    return state % below;
  };
  for (let round = 0; round < 20_000; round++) {
    const more = Array.from({ length: random(6) }, () => words[random(words.length)]);
    const args = ["-m", "5", "-a", "vhd:/x", ...more];
    const values = readPlainly(args);
    if (values === null) continue;
    plain++;
    assert.deepEqual(values, read(args), args.join(" "));
  }
  assert.ok(plain > 1000, `${plain} lines were plain`);
});

Deno.test("an option of another kind is left to commander", () => {
  for (const flags of ["--level [n]", "--files <name...>"]) {
    assert.throws(() => new Option(flags), NotPlain);
  }
});

// The files that are loaded open libraries.
Deno.test("every quick call is there", { sanitizeResources: false }, async () => {
  for (const [call, load] of Object.entries(QUICK_CALLS)) {
    assert.equal(typeof (await load()).run, "function", call);
  }
});
