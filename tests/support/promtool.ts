/**
 * Prometheus' own tool, which is in Debian's package `prometheus`. To install that starts a server, so that the
 * package is unpacked under `.toolchain` in place of it.
 *
 * @module
 */
import { messageOf } from "../../ffi/errno.ts";
import { findTool, type Needs, run } from "./tools.ts";

const MACHINE = new URL("../../scripts/machine", import.meta.url).pathname;
const TIMEOUT_MS = 10 * 60_000;

/** The program, and whether tests that use it must be skipped. */
export interface Promtool extends Needs {
  readonly path: string;
}

async function unpacked(): Promise<string> {
  const args = ["alone", "promtool", "prometheus"];
  const { code, stdout, stderr } = await run(MACHINE, args, { timeoutMs: TIMEOUT_MS });
  if (code === 0) return `${stdout.trim()}/usr/bin/promtool`;
  throw new Error(stderr.trimEnd().split("\n").slice(-2).join(": "));
}

/** promtool as it is installed, or unpacked from Debian's package. */
export async function findPromtool(): Promise<Promtool> {
  try {
    const path = findTool("promtool") ?? await unpacked();
    return { path, ignore: false, suffix: "" };
  } catch (error) {
    return { path: "", ignore: true, suffix: ` (skipped: no promtool: ${messageOf(error)})` };
  }
}
