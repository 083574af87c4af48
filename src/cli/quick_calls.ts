import type { Quick } from "./quick/quick.ts";

/** The files of `quick/`, by program and subcommand. */
export const QUICK_CALLS: Readonly<Record<string, () => Promise<{ readonly run: Quick }>>> = {
  "tap-ctl list": () => import("./quick/tap_ctl_list.ts"),
  "tap-ctl allocate": () => import("./quick/tap_ctl_allocate.ts"),
  "tap-ctl free": () => import("./quick/tap_ctl_free.ts"),
  "tap-ctl spawn": () => import("./quick/tap_ctl_spawn.ts"),
  "tap-ctl attach": () => import("./quick/tap_ctl_attach.ts"),
  "tap-ctl detach": () => import("./quick/tap_ctl_detach.ts"),
  "tap-ctl close": () => import("./quick/tap_ctl_close.ts"),
  "tap-ctl pause": () => import("./quick/tap_ctl_pause.ts"),
  "tap-ctl stats": () => import("./quick/tap_ctl_stats.ts"),
  "tap-ctl open": () => import("./quick/tap_ctl_open.ts"),
  "vhd-util query": () => import("./quick/vhd_util_query.ts"),
  "td-util convert": () => import("./quick/td_util_convert.ts"),
};
