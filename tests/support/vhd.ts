/**
 * Helpers for tests of the VHD format: initial images, and vhd-util run in this process.
 *
 * @module
 */

import { vhdUtilMain } from "../../src/cli/vhd_util/main.ts";
import { PlainOutput } from "../../src/cli/subcommands/output.ts";
// Loaded here because Deno reports a library that is loaded within a test as a leak.
import "../../src/files/storage.ts";
import "../../src/bulk/bulk_context.ts";
import type { Storage } from "../../src/files/storage.ts";

const GOLDEN = new URL("../data/golden/", import.meta.url).pathname;

/** The text of a file of the golden data. */
export function goldenText(name: string): string {
  return Deno.readTextFileSync(GOLDEN + name);
}

/** An image that the reference tapdisk wrote: `base.vhd` or its child `child.vhd`. */
export async function goldenImage(
  name: "base.vhd" | "child.vhd",
): Promise<Uint8Array<ArrayBuffer>> {
  const packed = new Blob([Deno.readFileSync(`${GOLDEN}${name}.gz`)]);
  const unpacked = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

/** Writes bytes to a file of a storage. */
export function putFile(storage: Storage, path: string, bytes: Uint8Array<ArrayBuffer>): void {
  const file = storage.open(path, "create");
  file.writeAt(bytes, 0);
  file.close();
}

/** Makes a file of a storage durable. */
export function syncFile(storage: Storage, path: string): void {
  const file = storage.open(path, "write");
  file.sync();
  file.close();
}

/** All bytes of a file of a storage. */
export function getFile(storage: Storage, path: string): Uint8Array<ArrayBuffer> {
  const file = storage.open(path, "read");
  const bytes = new Uint8Array(file.sizeBytes());
  file.readAt(bytes, 0);
  file.close();
  return bytes;
}

/** The result of a call. */
export interface ProgramResult {
  readonly code: number;
  readonly stdout: string;
  readonly stdoutBytes: Uint8Array<ArrayBuffer>;
  readonly stderr: string;
}

class CapturedOutput extends PlainOutput {
  readonly parts: Uint8Array<ArrayBuffer>[] = [];
  stderr = "";

  protected add(bytes: Uint8Array<ArrayBuffer>): void {
    this.parts.push(bytes);
  }

  protected addError(bytes: Uint8Array<ArrayBuffer>): void {
    this.stderr += new TextDecoder().decode(bytes);
  }
}

/** Runs vhd-util in this process. */
export function vhdUtil(...args: string[]): Promise<ProgramResult> {
  return runProgram(vhdUtilMain, args);
}

/** Runs the main function of a program with subcommands in this process. */
export async function runProgram(
  main: typeof vhdUtilMain,
  args: readonly string[],
): Promise<ProgramResult> {
  const output = new CapturedOutput();
  const code = await main(args, { output });
  const stdoutBytes = new Uint8Array(await new Blob(output.parts).arrayBuffer());
  const stdout = new TextDecoder().decode(stdoutBytes);
  return { code, stdout, stdoutBytes, stderr: output.stderr };
}
