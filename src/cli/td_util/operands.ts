import type { RbdMaking } from "../../../ffi/rbd_images.ts";
import { imageName } from "../../images/names.ts";
import { parseDiskSize } from "../sizes.ts";
import { type CommandCall, type CommandOption, UsageError } from "../subcommands/command.ts";

/** What Ceph allows for the size of objects. */
const LEAST_OBJECT_BYTES = 4096;
const MOST_OBJECT_BYTES = 32 * 1024 * 1024;

/** The option of work that takes time. */
export const QUIET_OPTION: CommandOption = { name: "quiet", text: "print no progress" };

/** The option of what is printed for people or for programs. */
export const JSON_OPTION: CommandOption = { name: "json", text: "print JSON" };

/**
 * The operands of a call, which must be as many as there are names.
 *
 * @throws {UsageError} when they are not.
 */
export function operandsOf(call: CommandCall, ...names: readonly string[]): string[] {
  if (call.operands.length === names.length) return [...call.operands];
  throw new UsageError(
    `Expected ${names.join(" and ")}, and got ${call.operands.length} arguments`,
  );
}

/** An operand that names an image. */
export function imageOf(operand: string): string {
  return imageName(operand);
}

/**
 * A size in bytes, such as `10Gi`.
 *
 * @throws {UsageError} for what is none, or is not whole sectors.
 */
export function sizeOf(text: string): number {
  const bytes = parseDiskSize(text);
  if (bytes !== null) return bytes;
  throw new UsageError(
    `Cannot read '${text}' as a size: it must be whole sectors of 512 bytes, such as 10Gi or 512Mi`,
  );
}

/** The options of new images on Ceph. */
export const ON_CEPH_OPTIONS: readonly CommandOption[] = [
  {
    name: "object-size",
    value: "SIZE",
    text: "of a new rbd: the size of its objects, such as 8Mi",
  },
  { name: "data-pool", value: "POOL", text: "of a new rbd: the pool of its data" },
];

/**
 * What those options say; undefined without them.
 *
 * @throws {UsageError} for a size that is no power of two from 4 KiB to 32 MiB.
 */
export function makingOf(call: CommandCall): RbdMaking | undefined {
  const [size, dataPool] = [call.value("object-size"), call.value("data-pool")];
  if (size === null && dataPool === null) return undefined;
  const objectBytes = size === null ? undefined : objectBytesOf(size);
  return { objectBytes, dataPool: dataPool ?? undefined };
}

function objectBytesOf(text: string): number {
  const bytes = parseDiskSize(text) ?? 0;
  const isPower = Number.isInteger(Math.log2(bytes));
  if (isPower && bytes >= LEAST_OBJECT_BYTES && bytes <= MOST_OBJECT_BYTES) return bytes;
  throw new UsageError(
    `Cannot make objects of '${text}': it must be a power of two from 4Ki to 32Mi`,
  );
}
