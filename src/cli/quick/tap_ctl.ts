import { bareCommand, type Define, runCommand } from "../tap_ctl/run.ts";
import type { Quick } from "./quick.ts";

/** A command of tap-ctl. Only the whole program prints help, so the summary is not needed. */
export function quickCommand(name: string, define: Define): Quick {
  return (args) => runCommand(name, () => define(bareCommand(name, "")), args);
}
