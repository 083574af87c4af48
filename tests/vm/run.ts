/**
 * Runs a shell script as root in a virtual machine with Debian's kernel, prints its console, and
 * exits with the script's exit status (124: time-out; 125: the machine stopped by itself).
 *
 *     deno run -A tests/vm/run.ts [OPTION…] SCRIPT.sh [ARGUMENT…]
 *
 *     --dist FOLDER   the folder of tapdisk, tap-ctl and vhd-util; it is on PATH (dist)
 *     --out FOLDER    shared with the machine, where it is $OUT (a new folder, removed at the end)
 *     --mem MIB       memory (1536)
 *     --cpus N        (2)
 *     --disk MIB      an empty disk, /dev/vdb; again for /dev/vdc and so on
 *     --layer PACKAGE a Debian package for the machine only, not for this system
 *     --timeout S     (300)
 *
 * The first run downloads the kernel's packages and builds ublk_drv.ko in .toolchain/vm, which
 * takes half a minute. Any number of machines may run at once. KVM is used where it works,
 * otherwise emulation, which takes 10 s to the start of the script; BLKTAP_VM_ACCEL=tcg or kvm
 * selects one. In the script:
 *
 *     modprobe nbd; modprobe ublk_drv     # not loaded at first
 *     cp image.vhd "$OUT/"                # to be checked from outside
 *     cd "$SCRATCH"                       # ext4 on /dev/vda, 8 GiB: for images, with O_DIRECT
 *
 * The root folder is that of this system, read-only, below a layer in memory, with lvm2 and
 * nbd-client. /tmp and /run are empty; /dev and /sys/kernel/debug are mounted. Neither udev nor
 * systemd runs.
 *
 * @module
 */

import { parseArgs } from "node:util";
import { prepareLayer, prepareMachine, runMachine } from "./support/machine.ts";

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    args: beforeArguments(Deno.args),
    allowPositionals: true,
    options: {
      dist: { type: "string" },
      out: { type: "string" },
      mem: { type: "string", default: "1536" },
      cpus: { type: "string", default: "2" },
      disk: { type: "string", multiple: true, default: [] },
      layer: { type: "string", multiple: true, default: [] },
      timeout: { type: "string", default: "300" },
    },
  });
  const script = positionals[0];
  if (script === undefined) {
    console.error("Usage: run.ts [OPTION…] SCRIPT.sh [ARGUMENT…]");
    return 2;
  }
  const found = await prepareMachine();
  const layers = values.layer.length > 0 ? [await prepareLayer("run", values.layer)] : [];
  const out = values.out ?? Deno.makeTempDirSync({ prefix: "blktap-vm-out-" });
  Deno.mkdirSync(out, { recursive: true });
  try {
    const { code, accelerator, seconds } = await runMachine({
      files: { ...found, layers: [...found.layers, ...layers] },
      script,
      args: Deno.args.slice(beforeArguments(Deno.args).length),
      distFolder: values.dist,
      outFolder: out,
      memoryMib: Number(values.mem),
      cpus: Number(values.cpus),
      disksMib: values.disk.map(Number),
      timeoutMs: Number(values.timeout) * 1000,
      onConsole: (bytes) => Deno.stdout.writeSync(bytes),
    });
    console.error(`Status ${code} after ${seconds.toFixed(1)} s (${accelerator})`);
    return code;
  } finally {
    if (values.out === undefined) {
      Deno.removeSync(out, { recursive: true });
    }
  }
}

/** The arguments up to the script are for this program; every option takes a value. */
function beforeArguments(args: readonly string[]): string[] {
  let index = 0;
  while (args[index]?.startsWith("--")) {
    index += args[index].includes("=") ? 1 : 2;
  }
  return args.slice(0, index + 1);
}

Deno.exit(await main());
