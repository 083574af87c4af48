/**
 * Xen's script block-tap, which xl runs for disks with `script=block-tap`, on this machine: its
 * calls of tap-ctl, and its use of the answers. The script is Debian's, unmodified. Xen's store,
 * which does not exist without Xen, is a folder of files here.
 *
 * @module
 */

import assert from "node:assert/strict";
import { commandLine, type ControlBench, withControlBench } from "../../support/control.ts";
import { needs, run, type RunResult } from "../../support/tools.ts";
import { prepareXenLayer } from "./xen_machine.ts";

/** The path of the script's disk in the store, as xl sets it. */
const XENBUS_PATH = "backend/vbd/1/51712";

/** Replacements for the programs of Xen's store; the store is the folder $STORE. */
const PROGRAMS = {
  "xenstore-read": 'cat "$STORE/$1"',
  "xenstore-write":
    'while [ $# -gt 0 ]; do mkdir -p "$STORE/${1%/*}"; printf %s "$2" >"$STORE/$1"; shift 2; done',
  "tap-ctl": 'printf "%s\\n" "$*" >>"$CALLS"; exec $TAP_CTL "$@"',
};

const { layer, ignore, suffix } = await scripts();

/** The folder of Debian's scripts, or the reason why they are missing. */
async function scripts(): Promise<{ layer: string; ignore: boolean; suffix: string }> {
  const { ignore, suffix } = needs("root", "unshare", "bash");
  if (ignore) return { layer: "", ignore, suffix };
  try {
    return { layer: await prepareXenLayer("4.17"), ignore: false, suffix: "" };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { layer: "", ignore: true, suffix: ` (skipped: ${why})` };
  }
}

/** One disk of a guest, as the script sees it. */
class ScriptedDisk {
  readonly #bench: ControlBench;
  readonly #store: string;

  constructor(bench: ControlBench, target: string) {
    this.#bench = bench;
    this.#store = Deno.makeTempDirSync({ dir: bench.folder });
    Deno.mkdirSync(`${this.#store}/${XENBUS_PATH}`, { recursive: true });
    Deno.writeTextFileSync(`${this.#store}/${XENBUS_PATH}/params`, target);
    for (const [name, body] of Object.entries(PROGRAMS)) {
      Deno.writeTextFileSync(`${this.#store}/${name}`, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
    }
  }

  /**
   * Runs the script as xl does. The path of its log is fixed; another file is mounted over it for
   * this run.
   */
  async run(command: "add" | "remove", env: Record<string, string> = {}): Promise<RunResult> {
    const script = `${layer}/etc/xen/scripts/block-tap`;
    const steps = `mount -t tmpfs log /var/log && mkdir /var/log/xen && exec ${script} ${command}`;
    return await run("unshare", ["--mount", "sh", "-c", steps], {
      env: {
        ...this.#bench.env,
        PATH: `${Deno.env.get("PATH")}:${this.#store}`,
        STORE: this.#store,
        CALLS: `${this.#store}/calls`,
        TAP_CTL: commandLine("tap-ctl").join(" "),
        XENBUS_PATH,
        ...env,
      },
    });
  }

  /** The calls of tap-ctl since the last call. */
  calls(): string[] {
    const text = Deno.readTextFileSync(`${this.#store}/calls`);
    Deno.removeSync(`${this.#store}/calls`);
    return text.trimEnd().split("\n");
  }

  /** A value of the disk in the store; undefined when it is absent. */
  stored(key: string): string | undefined {
    try {
      return Deno.readTextFileSync(`${this.#store}/${XENBUS_PATH}/${key}`);
    } catch {
      return undefined;
    }
  }
}

async function newVhd(bench: ControlBench, name: string): Promise<string> {
  const path = `${bench.folder}/${name}`;
  const [program, ...args] = commandLine("vhd-util", "create", "-n", path, "-s", "16");
  assert.equal((await run(program, args)).code, 0);
  return path;
}

async function added(bench: ControlBench, target: string): Promise<ScriptedDisk> {
  const disk = new ScriptedDisk(bench, target);
  assert.equal((await disk.run("add")).code, 0);
  return disk;
}

Deno.test({
  name: `block-tap add creates a device, and says to xl which${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const image = await newVhd(bench, "disk.vhd");
      const disk = await added(bench, `vhd:${image}`);
      assert.deepEqual(disk.calls(), ["check", `create -a vhd:${image}`]);
      const minor = `${bench.control}/tapdisk/tapdisk-0`;
      assert.equal(disk.stored("physical-device-path"), minor);
      const numbers = (await run("stat", ["-L", "-c", "%t:%T", minor])).stdout.trim();
      assert.equal(disk.stored("physical-device"), numbers);
      assert.equal(disk.stored("hotplug-status"), "connected");
      assert.match((await bench.list())[0], new RegExp(`args=vhd:${image}$`));
    }),
});

Deno.test({
  name: `block-tap remove finds among others the device of its image, and destroys it${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const images = [];
      const disks = [];
      for (const name of ["a.vhd", "b.vhd", "c.vhd"]) {
        images.push(await newVhd(bench, name));
        disks.push(await added(bench, `vhd:${images.at(-1)}`));
      }
      const listed = await bench.list(`-t vhd -f ${images[1]}`);
      assert.equal(listed.length, 1);
      const [, pid, minor] = /^pid=(\d+) minor=(\d+) /.exec(listed[0]) ?? [];
      disks[1].calls();
      assert.equal((await disks[1].run("remove")).code, 0);
      assert.deepEqual(disks[1].calls(), [
        "check",
        `list -t vhd -f ${images[1]}`,
        `destroy -p ${pid} -m ${minor}`,
      ]);
      const left = (await bench.list()).map((line) => line.replace(/.*args=vhd:/, ""));
      assert.deepEqual(left.sort(), [images[0], images[2]]);
    }),
});

Deno.test({
  name: `block-tap takes raw images as well${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const image = bench.rawImage("disk.raw");
      const disk = await added(bench, `aio:${image}`);
      assert.equal(disk.stored("hotplug-status"), "connected");
      assert.equal((await disk.run("remove")).code, 0);
      assert.deepEqual(await bench.list(), []);
    }),
});

Deno.test({
  name: `block-tap fails when there is no such image, and connects nothing${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const disk = new ScriptedDisk(bench, `vhd:${bench.folder}/gone.vhd`);
      assert.equal((await disk.run("add")).code, 2);
      assert.equal(disk.stored("hotplug-status"), undefined);
      assert.deepEqual(await bench.list(), []);
    }),
});

Deno.test({
  name: `block-tap tells xl when no tapdisk can run here${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const disk = new ScriptedDisk(bench, "vhd:/disk.vhd");
      assert.equal((await disk.run("add", { BLKTAP_CONTROL_DIR: "/proc/none" })).code, 1);
      assert.deepEqual(disk.calls(), ["check"]);
      assert.equal(disk.stored("hotplug-status"), "error");
      assert.equal(disk.stored("hotplug-error"), "Blocktap kernel module not available");
    }),
});

Deno.test({
  name: `block-tap tells xl when there is nothing to remove${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const disk = new ScriptedDisk(bench, "vhd:/disk.vhd");
      assert.equal((await disk.run("remove")).code, 1);
      assert.equal(disk.stored("hotplug-error"), "cannot find required parameters");
    }),
});
