/**
 * Xen's own xenstored for tests, on a machine without Xen (`without_xen.c`). Debian's packages
 * xen-utils and libxenmisc have it; `.toolchain/vm` has them after the tests in `tests/vm/xen`.
 *
 * @module
 */
import { until } from "../control.ts";
import { findTool, runOk } from "../tools.ts";

const ROOT = new URL("../../../", import.meta.url).pathname;
const SHIM = new URL("without_xen.c", import.meta.url).pathname;

/** The newest program, and the folder of its libraries; null when there is none. */
function findXenstored(): { readonly program: string; readonly root: string } | null {
  const roots = ["/"];
  try {
    for (const { name } of Deno.readDirSync(`${ROOT}.toolchain/vm`)) {
      roots.push(`${ROOT}.toolchain/vm/${name}/`);
    }
  } catch {
    // No packages were fetched.
  }
  for (const root of roots) {
    try {
      for (const { name } of Deno.readDirSync(`${root}usr/lib`)) {
        const program = `${root}usr/lib/${name}/bin/xenstored`;
        if (name.startsWith("xen-") && Deno.statSync(program).isFile) return { program, root };
      }
    } catch {
      // Not here.
    }
  }
  return null;
}

const found = findXenstored();

/** What is missing to run it; empty for nothing. */
export const MISSING_FOR_XENSTORED: readonly string[] = [
  ...(found === null ? ["xenstored"] : []),
  ...(findTool("gcc") === undefined ? ["gcc"] : []),
];

/** A xenstored that runs. */
export class RealXenstored {
  readonly #child: Deno.ChildProcess;

  private constructor(child: Deno.ChildProcess, readonly socket: string) {
    this.#child = child;
  }

  /** Starts it in a folder, which must be empty. */
  static async start(folder: string): Promise<RealXenstored> {
    if (found === null) throw new Error("There is no xenstored");
    const shim = `${folder}/without_xen.so`;
    await runOk("gcc", ["-shared", "-fPIC", "-O", "-o", shim, SHIM, "-ldl"]);
    const child = new Deno.Command(found.program, {
      args: ["-N"],
      env: {
        LD_PRELOAD: shim,
        ...(found.root === "/" ? {} : { LD_LIBRARY_PATH: `${found.root}usr/lib/x86_64-linux-gnu` }),
        XENSTORED_RUNDIR: folder,
        XENSTORED_ROOTDIR: folder,
      },
      stdin: "null",
      stdout: "null",
      stderr: "inherit",
    }).spawn();
    const socket = `${folder}/socket`;
    await until("xenstored listens", () => {
      try {
        return Deno.statSync(socket).isSocket === true;
      } catch {
        return false;
      }
    });
    return new RealXenstored(child, socket);
  }

  async end(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.status;
  }
}
