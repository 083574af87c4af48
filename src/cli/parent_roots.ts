import { type Command, Option } from "commander";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { workingFolder } from "../../ffi/paths.ts";
import { PARENT_ROOT_TEXT } from "./shared_texts.ts";
import { ANY_FOLDER, ON_CEPH, PARENT_ROOTS_VARIABLE } from "../files/confinement.ts";

/** The values of `--parent-root`. */
export interface ParentRootChoices {
  readonly parentRoot?: readonly string[];
}

/** Adds `--parent-root` to a command. */
export function parentRootOption(command: Command): Command {
  return command.addOption(
    new Option("--parent-root <folder>", PARENT_ROOT_TEXT)
      .argParser((folder: string, before: readonly string[] = []) => [...before, folder]),
  );
}

/**
 * Adds the folders to the environment, so that tapdisks that this process starts allow them too.
 *
 * @throws {SystemError} EINVAL for a name with a colon, which the variable cannot hold.
 */
export function allowParentRoots({ parentRoot = [] }: ParentRootChoices): void {
  const roots = parentRoot.map((root) => {
    if (root.includes(":")) {
      const why = `${PARENT_ROOTS_VARIABLE} cannot hold a name with a colon`;
      throw new SystemError(Errno.EINVAL, `Cannot allow parents in ${root}: ${why}`);
    }
    const isWord = root === ANY_FOLDER || root === ON_CEPH;
    return root.startsWith("/") || isWord ? root : `${workingFolder()}/${root}`;
  });
  const before = Deno.env.get(PARENT_ROOTS_VARIABLE) ?? "";
  if (roots.length > 0) {
    Deno.env.set(PARENT_ROOTS_VARIABLE, [...(before === "" ? [] : [before]), ...roots].join(":"));
  }
}
