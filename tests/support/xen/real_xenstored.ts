/**
 * Xen's own xenstored for tests, on a machine without Xen (`without_xen.c`). Debian's packages
 * xen-utils and libxenmisc have it; `.toolchain/vm` has them after the tests in `tests/vm/xen`.
 *
 * @module
 */
import { closeFile } from "../../../ffi/files.ts";
import { unixConnect } from "../../../ffi/sockets.ts";
import { until } from "../control.ts";
import { findTool, runOk } from "../tools.ts";

const ROOT = new URL("../../../", import.meta.url).pathname;
const SHIM = new URL("without_xen.c", import.meta.url).pathname;

/** A xenstored, and how it is run. */
interface Found {
  readonly program: string;
  readonly libraries: string;
  /** The loader of its own C library; null for that of this machine. */
  readonly loader: string | null;
  /** Of Xen 4. */
  readonly minor: number;
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

function namesIn(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => name);
  } catch {
    return [];
  }
}

/** The newest program; null when there is none. */
function findXenstored(): Found | null {
  const packages = `${ROOT}.toolchain/vm`;
  // What is being unpacked has another name until it is whole.
  const whole = namesIn(packages).filter((name) => !name.endsWith(".new"));
  const roots = ["/", ...whole.map((name) => `${packages}/${name}/`)];
  const all = roots.flatMap((root) =>
    namesIn(`${root}usr/lib`).map((name): Found => {
      const libraries = `${root}usr/lib/x86_64-linux-gnu`;
      const loader = `${libraries}/ld-linux-x86-64.so.2`;
      return {
        program: `${root}usr/lib/${name}/bin/xenstored`,
        libraries,
        loader: root !== "/" && isFile(loader) ? loader : null,
        minor: Number(/^xen-4\.(\d+)$/.exec(name)?.[1] ?? NaN),
      };
    })
  );
  const usable = all.filter(({ program, minor }) => minor > 0 && isFile(program));
  return usable.sort((a, b) => b.minor - a.minor).at(0) ?? null;
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
    const { program, libraries, loader } = found;
    const command = loader === null
      ? [program]
      : [loader, "--library-path", libraries, "--preload", shim, program];
    const child = new Deno.Command(command[0], {
      args: [...command.slice(1), "-N"],
      env: {
        ...(loader === null ? { LD_PRELOAD: shim, LD_LIBRARY_PATH: libraries } : {}),
        XENSTORED_RUNDIR: folder,
        XENSTORED_ROOTDIR: folder,
        XEN_RUN_DIR: folder,
      },
      stdin: "null",
      stdout: "null",
      stderr: "inherit",
    }).spawn();
    const socket = `${folder}/socket`;
    await until("xenstored listens", () => {
      try {
        // The socket's file is there before it listens.
        closeFile(unixConnect(socket));
        return true;
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
