import type { ListedDevice } from "../control/client/device_list.ts";
import { DEVICE_MAKERS } from "../frontend/device_makers.ts";
import { type Finding, findingsOf, namesOf, numberIn, textOf } from "./finding.ts";

/** The modules of the kinds of block devices. */
const MODULES: Readonly<Record<string, string>> = {
  ublk: "ublk_drv",
  nbd: "nbd",
  blktap2: "blktap",
};

/** Whether the kernel has a module. */
type ModuleState = "loaded" | "loadable" | "absent" | "unknown";

/** A kind of block devices. */
export interface DriverFacts {
  readonly kind: string;
  readonly module: string;
  /** Why tapdisk cannot use it; null when it can. */
  readonly missing: string | null;
  readonly state: ModuleState;
}

/** Whether a list of modules, as depmod makes it, has a module. */
export function listsModule(list: string, module: string): boolean {
  const name = module.replaceAll("_", "[_-]");
  return new RegExp(`(^|/)${name}\\.ko(\\.[a-z0-9]+)?(:|$)`, "m").test(list);
}

function moduleState(module: string): ModuleState {
  if (namesOf("/sys/module").includes(module)) return "loaded";
  const folder = `/lib/modules/${Deno.osRelease()}`;
  const lists = [textOf(`${folder}/modules.dep`), textOf(`${folder}/modules.builtin`)];
  if (lists.every((list) => list === null)) return "unknown";
  return lists.some((list) => list !== null && listsModule(list, module)) ? "loadable" : "absent";
}

/** The kinds of block devices on this host. */
export function driverFacts(): DriverFacts[] {
  return DEVICE_MAKERS.map((maker) => {
    const module = MODULES[maker.kind] ?? maker.kind;
    return { kind: maker.kind, module, missing: maker.missing(), state: moduleState(module) };
  });
}

const drivers = findingsOf("drivers");

function judgeDriver({ kind, module, missing, state }: DriverFacts): Finding {
  if (missing === null) return drivers.ok(`Disks can be block devices of ${kind}`, module);
  const what = `Disks cannot be block devices of ${kind}: ${missing}`;
  if (state === "loadable") return drivers.note(what, module, `modprobe ${module}`);
  const why = state === "absent" ? "; this kernel has no such module" : "";
  return drivers.note(`${what}${why}`, module);
}

/**
 * Judges which block devices can be made. NBD clients need none, so that nothing is a fault without a disk
 * of the list that wants one.
 */
export function judgeDrivers(
  facts: readonly DriverFacts[],
  listed: readonly Pick<ListedDevice, "name" | "device" | "auto">[],
): Finding[] {
  const usable = new Set(facts.filter(({ missing }) => missing === null).map(({ kind }) => kind));
  const wishes = listed.filter(({ device, auto }) =>
    auto && device !== "none" && device !== "auto" && !usable.has(device)
  ).map(({ name, device }) => {
    const module = MODULES[device] ?? device;
    const what =
      `Disk ${name} of the list is to be a block device of ${device}, which cannot be made`;
    return drivers.error(what, "/etc/blktap/devices", `modprobe ${module}`);
  });
  return [...facts.map(judgeDriver), ...wishes];
}

/** What the kernel allows of asynchronous I/O. */
export interface AsyncFacts {
  /** `kernel.io_uring_disabled`; null on kernels without it. */
  readonly uringDisabled: number | null;
  /** `fs.aio-nr` and `fs.aio-max-nr`; null where they cannot be read. */
  readonly used: number | null;
  readonly most: number | null;
}

/** Requests that each tapdisk sets up; see `src/queue/libaio.ts`. */
const OF_A_TAPDISK = 512;
/** As many tapdisks should still start. */
const ENOUGH_TAPDISKS = 16;

const AIO_MAX = "/proc/sys/fs/aio-max-nr";
const URING_DISABLED = "/proc/sys/kernel/io_uring_disabled";

/** The limits of this host. */
export function asyncFacts(): AsyncFacts {
  return {
    uringDisabled: numberIn(URING_DISABLED),
    used: numberIn("/proc/sys/fs/aio-nr"),
    most: numberIn(AIO_MAX),
  };
}

const asynchronous = findingsOf("asynchronous I/O");

/** Judges the limits of asynchronous I/O. */
export function judgeAsync({ uringDisabled, used, most }: AsyncFacts): Finding[] {
  return [judgeAio(used, most), judgeUring(uringDisabled)];
}

function judgeAio(used: number | null, most: number | null): Finding {
  if (used === null || most === null) {
    return asynchronous.note("How much Linux AIO is in use cannot be read", AIO_MAX);
  }
  const tapdisks = Math.max(0, Math.floor((most - used) / OF_A_TAPDISK));
  const what =
    `${used} of ${most} requests of Linux AIO are set up: ${tapdisks} more tapdisks can start`;
  const how = `sysctl -w fs.aio-max-nr=${Math.max(1_048_576, most * 4)}`;
  if (tapdisks === 0) return asynchronous.error(what, AIO_MAX, how);
  if (tapdisks < ENOUGH_TAPDISKS) return asynchronous.warning(what, AIO_MAX, how);
  return asynchronous.ok(what, AIO_MAX);
}

function judgeUring(disabled: number | null): Finding {
  if (disabled === null || disabled === 0) {
    return asynchronous.ok("The kernel allows io_uring", URING_DISABLED);
  }
  const what = `io_uring is switched off (${disabled}: ${
    disabled === 1 ? "for all but root and one group" : "for all"
  }): there are no ublk devices, and no disks with queue=io_uring`;
  return asynchronous.note(what, URING_DISABLED, "sysctl -w kernel.io_uring_disabled=0");
}
