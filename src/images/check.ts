import { Errno, SystemError } from "../../ffi/errno.ts";
import { osStorage } from "../files/storage.ts";
import type { ProgressListener } from "../files/progress.ts";
import { fileInName } from "../driver/layers.ts";
import { createEngine } from "./engine.ts";
import { kindOf } from "./kinds.ts";
import { knownImage } from "./names.ts";
import { OpenImage } from "./open_image.ts";
import type { WorkOptions } from "./work.ts";

/** What a check found in one image. */
export interface ImageCheck {
  /** `vhd:/disk.vhd`. */
  readonly name: string;
  /** Whether no finding is an error. */
  readonly valid: boolean;
  /** What was found. */
  readonly findings: readonly {
    readonly severity: "error" | "warning";
    readonly message: string;
  }[];
  /** What was repaired, a line each. */
  readonly repairs: readonly string[];
}

/** Options of a check. */
export interface CheckChainOptions extends Pick<WorkOptions, "onProgress"> {
  /** Mends the image itself, and checks again. The images below it are not changed. */
  readonly repair?: boolean;
  /** Also the images below it. */
  readonly chain?: boolean;
}

/**
 * Checks an image.
 *
 * @throws {SystemError} EOPNOTSUPP for a type that nothing is checked of, or that cannot be repaired;
 * EBUSY for faults that may come from a program that writes the image; errors of the file system. A damaged image is a result, not an error.
 */
export async function checkChain(
  name: string,
  { repair = false, chain = false, onProgress }: CheckChainOptions = {},
): Promise<ImageCheck[]> {
  const first = checkOne(name, { repair, onProgress });
  if (!chain || !first.valid) return [first];
  const below = await layersBelow(name);
  return [first, ...below.map((layer) => checkOne(layer, { repair: false, onProgress }))];
}

function checkOne(
  name: string,
  { repair, onProgress }: { repair: boolean; onProgress?: ProgressListener },
): ImageCheck {
  const { kind, path } = knownImage(name, "check");
  const cannot = (why: string): SystemError =>
    new SystemError(Errno.EOPNOTSUPP, `Cannot ${repair ? "repair" : "check"} ${name} (${why})`);
  if (kind.check === undefined) throw cannot("its type has nothing to check");
  if (repair && kind.repair === undefined) {
    throw cannot("nothing can be mended in images of its type; convert it");
  }
  const repairs = repair ? kind.repair?.(osStorage, path) ?? [] : [];
  const { valid, findings } = kind.check(osStorage, path, onProgress);
  if (!valid) refuseWritten(name, path);
  return { name, valid, findings, repairs };
}

/** Tables that are read at different moments may contradict each other without a fault. */
function refuseWritten(name: string, path: string): void {
  try {
    osStorage.open(path, "write").close();
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== Errno.EBUSY) return;
    const what = `Cannot check ${name} while it is written`;
    throw new SystemError(Errno.EBUSY, what, {
      hint: "pause or close the disk that uses it (see tap-ctl list)",
      cause: error,
    });
  }
}

/** The names of the images below one, as far as something of their types can be checked. */
async function layersBelow(name: string): Promise<string[]> {
  const engine = createEngine(() => {});
  try {
    const image = await OpenImage.open(engine, name, { readOnly: true });
    const names = image.layers.slice(1).map(({ spec }) => `${spec.type}:${spec.path}`);
    await image.close(engine);
    return names.filter((layer) => {
      const file = fileInName(layer);
      return file !== null && kindOf(file.driver.type)?.check !== undefined;
    });
  } finally {
    engine.close();
  }
}
