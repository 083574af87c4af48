/**
 * A virtual machine that runs a shell script as root: Debian's kernel in QEMU, with KVM or
 * emulation. The root folder of this system is its lowest layer, read-only, so everything that is
 * installed or built here is present there.
 *
 * In the machine, `$OUT` is a folder shared with the host. `$SCRATCH` is an ext4 on its own disk,
 * for images (a tmpfs does not support O_DIRECT). `/tmp` and `/run` are empty. The binaries of the
 * `dist` folder are on PATH. modprobe loads the kernel's modules, including `nbd` and `ublk_drv`.
 *
 * @module
 */

import { killTree } from "../../../scripts/processes.ts";
import { findTool, run, runOk } from "../../support/tools.ts";

const ROOT = new URL("../../../", import.meta.url).pathname;
const STAGE = new URL("stage.sh", import.meta.url).pathname;

/** Packages whose tools every machine has. */
const TOOLS = ["lvm2", "nbd-client", "kmod"];

/** Size of the disk of `$SCRATCH`, which is sparse. */
const SCRATCH_BYTES = 8 * 1024 ** 3;

/** How QEMU executes the machine's code. */
export type Accelerator = "kvm" | "tcg";

/** The files that {@linkcode prepareMachine} found or created. */
export interface MachineFiles {
  /** The folder with vmlinuz, initramfs, version and layer. */
  readonly kernel: string;
  /** Folders to mount over the root, the top one last. */
  readonly layers: readonly string[];
}

/** The options of a machine, and its script. */
export interface MachineOptions {
  readonly files: MachineFiles;
  /** The path of the script, which bash runs. */
  readonly script: string;
  readonly args?: readonly string[];
  /**
   * The script replaces the first process, because systemd must be the first process. The script,
   * or the program that it becomes, writes the exit status to $OUT/.vm/exit and powers the machine
   * off.
   */
  readonly asInit?: boolean;
  /** Added to the environment of the script. */
  readonly env?: Readonly<Record<string, string>>;
  /** The folder of tapdisk, tap-ctl and vhd-util; `dist` by default. */
  readonly distFolder?: string;
  /** The folder that is `$OUT` in the machine. */
  readonly outFolder: string;
  /** Further folders of the host's /tmp or /run that the script must see. */
  readonly folders?: readonly string[];
  readonly memoryMib?: number;
  readonly cpus?: number;
  /** Empty disks: /dev/vdb, /dev/vdc… */
  readonly disksMib?: readonly number[];
  readonly accelerator?: Accelerator;
  readonly cpu?: string;
  /**
   * A hypervisor with its own command line. It starts first, with Debian's kernel as its first
   * guest.
   */
  readonly hypervisor?: { readonly file: string; readonly commandLine: string };
  /** Added to the kernel's command line. */
  readonly kernelCommandLine?: string;
  readonly timeoutMs?: number;
  /** Receives the console output of the machine. */
  readonly onConsole?: (bytes: Uint8Array) => void;
}

export interface MachineResult {
  /** The exit status of the script; 124 after a time-out, 125 when the machine stopped by itself. */
  readonly code: number;
  /** The console output of the machine. */
  readonly console: string;
  readonly accelerator: Accelerator;
  readonly seconds: number;
}

/**
 * KVM if this process may use it and the CPU supports it, unless BLKTAP_VM_ACCEL is `kvm` or `tcg`.
 * Some clouds have a /dev/kvm without CPU support, which boots only kernels made for it.
 */
export function chosenAccelerator(): Accelerator {
  const told = Deno.env.get("BLKTAP_VM_ACCEL");
  if (told === "kvm" || told === "tcg") {
    return told;
  }
  try {
    Deno.openSync("/dev/kvm", { read: true, write: true }).close();
    return /^flags.* (vmx|svm)\b/m.test(Deno.readTextFileSync("/proc/cpuinfo")) ? "kvm" : "tcg";
  } catch {
    return "tcg";
  }
}

/**
 * Creates the machine's files, or finds existing ones; {@linkcode prepareLayer} adds packages.
 *
 * @throws {Error} With the reason, when they cannot be created.
 */
export async function prepareMachine(): Promise<MachineFiles> {
  const kernel = await made([]);
  return { kernel, layers: [`${kernel}/layer`, await prepareLayer("tools", TOOLS)] };
}

/**
 * Unpacks packages into a folder to mount over the root of a machine.
 *
 * @throws {Error} With the reason, when they are not available.
 */
export function prepareLayer(name: string, packages: readonly string[]): Promise<string> {
  return made(["layer", name, ...packages]);
}

/**
 * Unpacks packages of another suite of Debian, without those that they depend on, into a folder to
 * mount over the root of a machine.
 *
 * @throws {Error} With the reason, when they are not available.
 */
export function prepareSuite(
  suite: string,
  name: string,
  packages: readonly string[],
): Promise<string> {
  return made(["suite", suite, name, ...packages]);
}

async function made(args: readonly string[]): Promise<string> {
  const timeoutMs = 10 * 60_000;
  const { code, stdout, stderr } = await run(`${ROOT}scripts/machine`, args, { timeoutMs });
  if (code !== 0) {
    throw new Error(stderr.trimEnd().split("\n").slice(-2).join(": "));
  }
  return stdout.trim();
}

/** Boots a machine, runs the script in it and powers it off. */
export async function runMachine(options: MachineOptions): Promise<MachineResult> {
  const accelerator = options.accelerator ?? chosenAccelerator();
  const disks = Deno.makeTempDirSync({ prefix: "blktap-vm-" });
  const started = performance.now();
  try {
    writeOrders(options, accelerator);
    const args = await qemuArguments(options, accelerator, disks);
    const { text, timedOut } = await watch(args, options);
    const code = timedOut ? 124 : Number(Deno.readTextFileSync(`${options.outFolder}/.vm/exit`));
    return { code, console: text, accelerator, seconds: (performance.now() - started) / 1000 };
  } finally {
    Deno.removeSync(disks, { recursive: true });
  }
}

/** Writes the orders for stage.sh and the machine's first process to the shared folder. */
function writeOrders(options: MachineOptions, accelerator: Accelerator): void {
  const orders = `${options.outFolder}/.vm`;
  Deno.mkdirSync(orders, { recursive: true });
  Deno.writeTextFileSync(`${orders}/exit`, "125");
  const script = Deno.realPathSync(options.script);
  const dist = Deno.realPathSync(options.distFolder ?? `${ROOT}dist`);
  const seen = [ROOT.slice(0, -1), dist, script.slice(0, script.lastIndexOf("/"))];
  const folders = [...seen, ...options.folders ?? []];
  Deno.writeTextFileSync(`${orders}/layers`, lines(options.files.layers.map(layerTag)));
  Deno.writeTextFileSync(`${orders}/folders`, lines(folders));
  const env = {
    HOME: "/root",
    LC_ALL: "C.UTF-8",
    // No udev runs there to create nodes.
    DM_DISABLE_UDEV: "1",
    OUT: "/vm/out",
    SCRATCH: "/scratch",
    PATH: `${dist}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
    VM_ACCELERATOR: accelerator,
    ...options.env,
  };
  const exports = Object.entries(env).map(([name, value]) => `export ${name}=${quote(value)}`);
  const command = ["bash", script, ...options.args ?? []].map(quote).join(" ");
  Deno.writeTextFileSync(
    `${orders}/start`,
    lines([
      ...exports,
      "mkdir -p /scratch",
      "mount -t ext4 -o noatime /dev/vda /scratch",
      "cd /root",
      ...options.asInit === true ? [`exec ${command}`] : [
        `${command} </dev/null`,
        "echo $? >/vm/out/.vm/exit",
        "sync",
        "exec /vm/busybox poweroff -f",
      ],
    ]),
  );
}

async function qemuArguments(
  options: MachineOptions,
  accelerator: Accelerator,
  disks: string,
): Promise<string[]> {
  const { kernel } = options.files;
  const commandLine = [
    "console=" + (options.hypervisor === undefined ? "ttyS0" : "hvc0"),
    // QEMU translates code again at each address, so a program starts three times as fast when it is
    // always at the same one.
    "norandmaps",
    `quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on vm.stage=${STAGE}`,
    options.kernelCommandLine ?? "",
  ].join(" ").trim();
  // AVX, which newer models have, is slow in emulation; "host" does not start on every host.
  const cpu = options.cpu ?? "Westmere,+rdrand";
  return [
    ...["-accel", accelerator, "-cpu", cpu, "-smp", String(options.cpus ?? 2)],
    ...["-m", String(options.memoryMib ?? 1536), "-nodefaults", "-no-user-config", "-no-reboot"],
    ...["-display", "none", "-serial", "stdio"],
    ...bootArguments(options, kernel, commandLine),
    ...share("host", "/", "readonly=on"),
    ...options.files.layers.flatMap((path, index) =>
      share(layerTag(path, index), path, "readonly=on")
    ),
    ...share("out", Deno.realPathSync(options.outFolder), "readonly=off"),
    ...await diskArguments(options, disks),
  ];
}

function bootArguments(options: MachineOptions, kernel: string, commandLine: string): string[] {
  const [vmlinuz, initramfs] = [`${kernel}/vmlinuz`, `${kernel}/initramfs`];
  const { hypervisor } = options;
  return hypervisor === undefined
    ? ["-kernel", vmlinuz, "-initrd", initramfs, "-append", commandLine]
    : [
      ...["-kernel", hypervisor.file, "-append", hypervisor.commandLine],
      ...["-initrd", `${vmlinuz} ${commandLine},${initramfs}`],
    ];
}

function layerTag(_path: string, index: number): string {
  return `layer${index}`;
}

function share(tag: string, path: string, access: string): string[] {
  const folder = path.replaceAll(",", ",,");
  const backend = `local,id=${tag},path=${folder},security_model=none,multidevs=remap,${access}`;
  return ["-fsdev", backend, "-device", `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`];
}

async function diskArguments(options: MachineOptions, folder: string): Promise<string[]> {
  const sizes = [SCRATCH_BYTES, ...(options.disksMib ?? []).map((mib) => mib * 1024 ** 2)];
  const args: string[] = [];
  for (const [index, bytes] of sizes.entries()) {
    const path = `${folder}/disk${index}.img`;
    using file = Deno.openSync(path, { write: true, createNew: true });
    file.truncateSync(bytes);
    const drive = `file=${path},format=raw,if=none,id=disk${index},cache=unsafe,discard=unmap`;
    args.push("-drive", drive, "-device", `virtio-blk-pci,drive=disk${index}`);
  }
  await runOk("mkfs.ext4", ["-q", "-F", `${folder}/disk0.img`]);
  return args;
}

/** Runs QEMU to its end; kills it after the time-out and when this process dies. */
async function watch(
  args: readonly string[],
  options: MachineOptions,
): Promise<{ text: string; timedOut: boolean }> {
  const program = findTool("qemu-system-x86_64") ?? "qemu-system-x86_64";
  const child = new Deno.Command("setpriv", {
    args: ["--pdeathsig", "KILL", "--", program, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    killTree(child.pid);
  }, options.timeoutMs ?? 300_000);
  const chunks: string[] = [];
  const read = async (stream: ReadableStream<Uint8Array>): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const bytes of stream) {
      const text = decoder.decode(bytes, { stream: true });
      chunks.push(text);
      options.onConsole?.(bytes);
      // QEMU would wait forever with the machine stopped.
      if (text.includes("KVM internal error")) killTree(child.pid);
    }
  };
  await Promise.all([read(child.stdout), read(child.stderr), child.status]);
  clearTimeout(timer);
  return { text: chunks.join(""), timedOut };
}

function lines(some: readonly string[]): string {
  return some.map((line) => `${line}\n`).join("");
}

function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
