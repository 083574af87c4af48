import type { TargetEntry } from "./target.ts";

/** The targets. Each is a file in `targets/`. */
export const TARGETS: readonly TargetEntry[] = [
  {
    name: "blktap2-ring",
    weight: 5,
    load: async () => (await import("./targets/blktap2_ring.ts")).target,
  },
  {
    name: "cbt-logs",
    weight: 1,
    load: async () => (await import("./targets/cbt_logs.ts")).target,
  },
  {
    name: "config",
    weight: 2,
    load: async () => (await import("./targets/config.ts")).target,
  },
  {
    name: "control",
    weight: 2,
    load: async () => (await import("./targets/control.ts")).target,
  },
  {
    name: "images",
    weight: 5,
    load: async () => (await import("./targets/images.ts")).target,
  },
  {
    name: "journals",
    weight: 2,
    load: async () => (await import("./targets/journals.ts")).target,
  },
  {
    name: "nbd-client",
    weight: 3,
    load: async () => (await import("./targets/nbd_client.ts")).target,
  },
  {
    name: "nbd-server",
    weight: 16,
    load: async () => (await import("./targets/nbd_server.ts")).target,
  },
  {
    name: "other-formats",
    // A run of its own is in CI.
    weight: 1,
    load: async () => (await import("./targets/other_formats.ts")).target,
  },
  {
    name: "qemu",
    weight: 1,
    load: async () => (await import("./targets/qemu.ts")).target,
  },
  {
    name: "tap-ctl",
    weight: 2,
    load: async () => (await import("./targets/tap_ctl.ts")).target,
  },
  {
    name: "ublk-ring",
    weight: 3,
    load: async () => (await import("./targets/ublk_ring.ts")).target,
  },
  {
    name: "vhd-util",
    weight: 0.4,
    load: async () => (await import("./targets/vhd_util.ts")).target,
  },
  {
    name: "xenblkif-ring",
    weight: 5,
    load: async () => (await import("./targets/xenblkif_ring.ts")).target,
  },
];
