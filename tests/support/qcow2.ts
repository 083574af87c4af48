/**
 * QCOW2 images for tests: made by qemu-img, put on a simulated disk, and judged by qemu-img.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Storage } from "../../src/files/storage.ts";
import { run, runOk } from "./tools.ts";

/** Creates an image by qemu-img; `options` are those of its -o. */
export async function qemuCreate(
  path: string,
  sizeBytes: number,
  options: readonly string[] = [],
): Promise<void> {
  const more = options.length === 0 ? [] : ["-o", options.join(",")];
  await runOk("qemu-img", ["create", "-q", "-f", "qcow2", ...more, path, String(sizeBytes)]);
}

/** What `qemu-img check` found. */
export interface QemuCheck {
  readonly errors: number;
  readonly leaks: number;
  readonly text: string;
}

/** Checks an image by qemu-img. */
export async function qemuCheck(path: string): Promise<QemuCheck> {
  // QEMU looks for a data file in the folder that it runs in.
  const cwd = path.slice(0, path.lastIndexOf("/"));
  const { stdout, stderr } = await run("qemu-img", ["check", "-f", "qcow2", path], { cwd });
  const text = stdout + stderr;
  const errors = /(\d+) errors were found/.exec(text)?.[1];
  const leaks = /(\d+) leaked clusters were found/.exec(text)?.[1];
  const isWhole = /No errors were found|leaked clusters were found/.test(text);
  if (errors === undefined && !isWhole) throw new Error(`qemu-img check: ${text}`);
  return { errors: Number(errors ?? 0), leaks: Number(leaks ?? 0), text };
}

/** Asserts that qemu-img finds no errors; leaks are allowed if asked for. */
export async function assertQemuClean(path: string, mayLeak = false): Promise<void> {
  const { errors, leaks, text } = await qemuCheck(path);
  assert.ok(errors === 0 && (mayLeak || leaks === 0), text);
}

/** Copies a real file to a storage. */
export function putFile(storage: Storage, name: string, path: string): void {
  const bytes = Deno.readFileSync(path);
  const file = storage.open(name, "create-new");
  file.writeAt(bytes, 0);
  file.truncate(bytes.length);
  file.sync();
  file.close();
}

/** Copies a file of a storage to a real file. */
export function takeFile(storage: Storage, name: string, path: string): void {
  const file = storage.open(name, "read");
  const bytes = new Uint8Array(file.sizeBytes());
  file.readAt(bytes, 0);
  file.close();
  Deno.writeFileSync(path, bytes);
}
