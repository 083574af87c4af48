import { imageName } from "../../images/names.ts";
import { parseDiskSize } from "../sizes.ts";
import { type CommandCall, type CommandOption, UsageError } from "../subcommands/command.ts";

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
