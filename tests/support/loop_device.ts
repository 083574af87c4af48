/**
 * Block devices for tests, in files.
 *
 * @module
 */
import { needs, run, runOk, withTempDir } from "./tools.ts";

/** Whether loop devices can be created here; containers often forbid it. */
async function canLoop(): Promise<boolean> {
  if (needs("root", "losetup").ignore) return false;
  return await withTempDir(async (folder) => {
    Deno.writeFileSync(`${folder}/file`, new Uint8Array(4096));
    const { code, stdout } = await run("losetup", ["-f", "--show", `${folder}/file`]);
    if (code === 0) await runOk("losetup", ["-d", stdout.trim()]);
    return code === 0;
  });
}

/** The parts of the definition of a test that needs loop devices. */
export const loops = await canLoop()
  ? { ignore: false, suffix: "" }
  : { ignore: true, suffix: " (skipped: needs loop devices)" };

/** Calls `body` with a block device of this size, whose bytes are in `file`. */
export async function withLoopDevice(
  file: string,
  sizeBytes: number,
  body: (device: string) => Promise<void>,
): Promise<void> {
  const handle = Deno.openSync(file, { write: true, create: true });
  handle.truncateSync(sizeBytes);
  handle.close();
  const device = (await runOk("losetup", ["-f", "--show", file])).trim();
  try {
    await body(device);
  } finally {
    await runOk("losetup", ["-d", device]);
  }
}
