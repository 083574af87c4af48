/**
 * `tap-ctl top` in a real terminal (tmux), with a tapdisk under load: what it shows, and that the terminal is as
 * it was before, however it ends.
 *
 * @module
 */
import assert from "node:assert/strict";
import { fio } from "../support/fio.ts";
import { type Disk, needsServed, Tapdisks, withTapdisks } from "../support/served.ts";
import { binaryPath, run, runOk } from "../support/tools.ts";

const { ignore, suffix } = needsServed("tmux", "fio");

const ESCAPE = "\x1b";
/** The prompt of the shell; tmux leaves the spaces behind it out. */
const PROMPT = /^bash-\S+[#$]$/m;

/** A shell in a terminal of tmux. */
class Terminal {
  readonly #server: string;

  private constructor(folder: string) {
    this.#server = `${folder}/tmux`;
  }

  static async start(
    folder: string,
    { columns, rows, env }: { columns: number; rows: number; env: Record<string, string> },
  ): Promise<Terminal> {
    const terminal = new Terminal(folder);
    const variables = Object.entries(env)
      .flatMap(([name, value]) => ["-e", `${name}=${value}`]);
    await terminal.#tmux(
      ...["-f", "/dev/null", "new-session", "-d", "-x", `${columns}`, "-y", `${rows}`],
      ...variables,
      "bash --norc --noprofile",
    );
    await terminal.shows(PROMPT);
    return terminal;
  }

  async #tmux(...args: string[]): Promise<string> {
    return await runOk("tmux", ["-u", "-S", this.#server, ...args]);
  }

  /** The lines on the screen; with `withStyles`, also what colours them. */
  async screen({ withStyles = false } = {}): Promise<string> {
    return await this.#tmux("capture-pane", "-p", ...(withStyles ? ["-e"] : []));
  }

  /** The process that the shell runs. */
  async child(): Promise<number> {
    const shell = (await this.#tmux("display-message", "-p", "#{pane_pid}")).trim();
    return Number(Deno.readTextFileSync(`/proc/${shell}/task/${shell}/children`).trim());
  }

  /** Types text as it is. */
  async type(text: string): Promise<void> {
    await this.#tmux("send-keys", "-l", text);
  }

  /** Presses keys by tmux's names, such as `Enter` and `C-c`. */
  async press(...keys: string[]): Promise<void> {
    await this.#tmux("send-keys", ...keys);
  }

  async resize(columns: number, rows: number): Promise<void> {
    await this.#tmux("resize-window", "-x", `${columns}`, "-y", `${rows}`);
  }

  /** Waits until the screen matches; returns it. */
  async shows(pattern: RegExp): Promise<string> {
    const untilMs = performance.now() + 120_000;
    for (;;) {
      const screen = await this.screen();
      if (pattern.test(screen)) return screen;
      if (performance.now() > untilMs) throw new Error(`Not shown: ${pattern}\n${screen}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** Whether the other screen is there, and whether the cursor is. */
  async modes(): Promise<string> {
    return (await this.#tmux(
      "display-message",
      "-p",
      "#{alternate_on} #{cursor_flag} #{wrap_flag}",
    ))
      .trim();
  }

  async end(): Promise<void> {
    await run("tmux", ["-S", this.#server, "kill-server"]);
  }
}

/** What a terminal is like with a shell: no other screen, a cursor, lines that wrap. */
const AS_BEFORE = "0 1 1";
const DRAWN = "1 0 0";

interface Bench {
  readonly terminal: Terminal;
  readonly tapdisks: Tapdisks;
  readonly disk: Disk;
  readonly folder: string;
  /** Starts `tap-ctl top` in the terminal; prints its status when it has ended. */
  start(options?: string): Promise<void>;
}

function test(name: string, body: (bench: Bench) => Promise<void>): void {
  Deno.test({
    name: `tap-ctl top: ${name}${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        await runOk(binaryPath("vhd-util"), ["create", "-n", `${folder}/base.vhd`, "-s", "16"]);
        const snapshot = ["snapshot", "-n", `${folder}/leaf.vhd`, "-p", `${folder}/base.vhd`];
        await runOk(binaryPath("vhd-util"), snapshot);
        const disk = await tapdisks.serve(`vhd:${folder}/leaf.vhd`);
        const env = { BLKTAP_CONTROL_DIR: tapdisks.controlFolder };
        const terminal = await Terminal.start(folder, { columns: 80, rows: 24, env });
        const start = async (options = ""): Promise<void> => {
          await terminal.type("clear; echo before; stty -a | sed 1d >before.txt");
          await terminal.press("Enter");
          await terminal.shows(/^before$/m);
          await terminal.type(`${binaryPath("tap-ctl")} top -i 0.2 ${options}; echo "status $?"`);
          await terminal.press("Enter");
          await terminal.shows(/^MINOR /m);
        };
        try {
          await terminal.type(`cd ${folder}`);
          await terminal.press("Enter");
          await body({ terminal, tapdisks, disk, folder, start });
        } finally {
          await terminal.end();
        }
      }),
  });
}

/** Fails unless the terminal is as it was before the table. */
async function assertAsBefore(
  { terminal, folder }: Bench,
  { isResized = false } = {},
): Promise<void> {
  const screen = await terminal.shows(/^status \d+$/m);
  if (!isResized) assert.match(screen, /^before$/m);
  assert.doesNotMatch(screen, /^MINOR /m);
  assert.equal(await terminal.modes(), AS_BEFORE);
  await terminal.type("stty -a | sed 1d >after.txt; echo compared");
  await terminal.press("Enter");
  await terminal.shows(/^compared$/m);
  const text = (name: string): string => Deno.readTextFileSync(`${folder}/${name}`);
  assert.equal(text("after.txt"), text("before.txt"));
}

test("shows a disk under load, its chain and histogram, and fits the terminal", async (bench) => {
  const { terminal, disk } = bench;
  const stop = new AbortController();
  const load = fio(disk.uri, ["rw=randrw", "bs=4k", "iodepth=8", "time_based", "runtime=600"], {
    timeoutMs: 600_000,
    signal: stop.signal,
  }).catch((error) => error);
  try {
    await bench.start();
    assert.equal(await terminal.modes(), DRAWN);
    const busy = await terminal.shows(
      /^ +\d+ +[1-9][\d.]*[kM]? +\d+\.\d +\S+s +\S+s .*leaf\.vhd$/m,
    );
    assert.match(busy, /^1 disk, \S+ IOPS, .* MB\/s read, .* MB\/s written, in \d\.\d s$/m);
    assert.match(busy, / [1-9]\d*\/\d+\/\d+ /);
    await terminal.press("Enter");
    const open = await terminal.shows(/^Reads: .* requests/m);
    assert.match(open, new RegExp(`^Minor ${disk.minor} of tapdisk ${disk.pid}: vhd:`, "m"));
    assert.match(open, /^ +0 +16 MiB .*leaf\.vhd$/m);
    assert.match(open, /^ +1 +16 MiB .*base\.vhd$/m);
    assert.match(open, /^ {2}< +\S+s +\S+ #+/m);
    await terminal.press("Escape");
    await terminal.resize(120, 12);
    await terminal.shows(/^MINOR +IOPS +RD\/S +WR\/S .*IMAGE$/m);
    await terminal.resize(60, 10);
    await terminal.shows(/^MINOR +IOPS +MB\/S/m);
    await terminal.press("/");
    await terminal.type("nothing");
    await terminal.shows(/^Filter: nothing_/m);
    await terminal.press("Enter");
    await terminal.shows(/^No such disks$/m);
    await terminal.press("q");
  } finally {
    stop.abort();
    await load;
  }
  // Lines of the shell are above a screen that is smaller now.
  await assertAsBefore(bench, { isResized: true });
});

for (const [key, status] of [["C-c", 0], ["q", 0]] as const) {
  test(`${key} leaves the terminal as it was`, async (bench) => {
    await bench.start();
    await bench.terminal.press(key);
    await assertAsBefore(bench);
    assert.match(await bench.terminal.screen(), new RegExp(`^status ${status}$`, "m"));
  });
}

test("so do SIGTERM and SIGHUP", async (bench) => {
  for (const [signal, status] of [["SIGTERM", 143], ["SIGHUP", 129]] as const) {
    await bench.start();
    Deno.kill(await bench.terminal.child(), signal);
    await assertAsBefore(bench);
    assert.match(await bench.terminal.screen(), new RegExp(`^status ${status}$`, "m"));
  }
});

test("so does an error, which is printed", async (bench) => {
  await bench.start("-m 0");
  const { controlFolder } = bench.tapdisks;
  Deno.renameSync(controlFolder, `${controlFolder}.aside`);
  Deno.writeTextFileSync(controlFolder, "");
  try {
    await assertAsBefore(bench);
    assert.match(await bench.terminal.screen(), /^tap-ctl top: Cannot /m);
  } finally {
    Deno.removeSync(controlFolder);
    Deno.renameSync(`${controlFolder}.aside`, controlFolder);
  }
});

test("Ctrl-Z gives the terminal back, and fg goes on", async (bench) => {
  const { terminal } = bench;
  await bench.start();
  await terminal.press("C-z");
  await terminal.shows(/Stopped/);
  assert.equal(await terminal.modes(), AS_BEFORE);
  await terminal.type("fg");
  await terminal.press("Enter");
  await terminal.shows(/^MINOR /m);
  assert.equal(await terminal.modes(), DRAWN);
  await terminal.press("q");
  await terminal.shows(PROMPT);
  assert.equal(await terminal.modes(), AS_BEFORE);
});

test("bad news is red, and bold with NO_COLOR", async ({ terminal, tapdisks, disk, folder }) => {
  const other = await tapdisks.serve(`vhd:${folder}/base.vhd`, { options: ["-R"] });
  await tapdisks.tapCtlOk("pause", "-p", `${other.pid}`, "-m", `${other.minor}`);
  for (const [variable, wanted] of [["NO_COLOR=", "31"], ["NO_COLOR=1", "1"]]) {
    await terminal.type(`clear; ${variable} ${binaryPath("tap-ctl")} top -s minor`);
    await terminal.press("Enter");
    await terminal.shows(/ paused .*base\.vhd$/m);
    const row = (await terminal.screen({ withStyles: true })).split("\n")
      .find((line) => line.includes("base.vhd")) ?? "";
    assert.match(row, new RegExp(`${ESCAPE}\\[(?:\\d+;)*${wanted}m`), JSON.stringify(row));
    assert.equal(row.includes(`${ESCAPE}[31m`), wanted === "31");
    await terminal.press("q");
    await terminal.shows(PROMPT);
  }
  assert.notEqual(other.minor, disk.minor);
  await tapdisks.tapCtlOk("unpause", "-p", `${other.pid}`, "-m", `${other.minor}`);
});

test("prints tables and JSON where the output is no terminal", async ({ tapdisks, disk }) => {
  const table = await tapdisks.tapCtlOk("top", "-n", "2", "-i", "0.1");
  const lines = table.split("\n");
  assert.equal(lines.length, 6);
  assert.match(lines[0], /^1 disk, 0 IOPS/);
  assert.match(lines[5], new RegExp(`^ +${disk.minor} .*leaf\\.vhd$`));
  for (const line of lines) assert.ok(line.length <= 80);
  const json = await tapdisks.tapCtlOk("top", "--json", "-i", "0.1");
  const { disks, silent } = JSON.parse(json);
  assert.equal(json.includes("\n"), false);
  assert.deepEqual([disks.length, silent], [1, []]);
  assert.deepEqual(
    [disks[0].minor, disks[0].image, disks[0].stateName, disks[0].chain.length],
    [disk.minor, disk.image, "running", 2],
  );
  assert.equal(disks[0].rates.readsPerSecond, 0);
  assert.deepEqual(
    JSON.parse(await tapdisks.tapCtlOk("top", "--json", "-i", "0.1", "-m", "99")).disks,
    [],
  );
  const wrong = await tapdisks.tapCtl("top", "-i", "0");
  assert.equal(wrong.code, 22);
  assert.match(wrong.stderr, /from 0\.1 to 3600/);
});
