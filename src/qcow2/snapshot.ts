import { syncFile } from "../files/new_file.ts";
import { type FileIdentity, type OnStorage, osStorage } from "../files/storage.ts";
import { backingFacts, type BackingImage, storedBacking } from "./backing.ts";
import { createQcow2 } from "./create.ts";

/**
 * Makes an empty image on another one, which holds what this one has not. The name of the other one
 * is stored relative to the folder of the new one.
 *
 * @throws {SystemError} EOPNOTSUPP for another type; what the images say.
 */
export function snapshotQcow2(
  path: string,
  { storage = osStorage, parent, same }: OnStorage & {
    readonly parent: BackingImage;
    readonly same?: FileIdentity;
  },
): void {
  const stored = storedBacking(storage, { path, doing: "create" }, parent);
  const facts = backingFacts(storage, parent);
  syncFile(storage, stored.path);
  const { name, format } = stored;
  createQcow2(path, { storage, same, ...facts, backing: { name, format } });
}
