import type { Storage } from "./storage.ts";

const DEV_MAPPER = "/dev/mapper/";

/**
 * The canonical absolute path of an image. Links are resolved, except in `/dev/mapper`. The name
 * `/dev/<group>/<volume>` of a logical volume becomes its name in `/dev/mapper`, which stays the
 * same when the device behind it changes.
 *
 * @throws {SystemError} when the file does not exist.
 */
export function canonicalPath(storage: Storage, path: string): string {
  const plain = normalizePath(storage, path);
  if (plain.startsWith(DEV_MAPPER) && !plain.slice(DEV_MAPPER.length).includes("/")) {
    if (storage.exists(plain)) return plain;
  }
  const volume = /^\/dev\/([^/]+)\/([^/]+)$/.exec(plain);
  if (volume !== null) {
    const mapped = `${DEV_MAPPER}${doubleDashes(volume[1])}-${doubleDashes(volume[2])}`;
    if (storage.exists(mapped)) return mapped;
  }
  return storage.realPath(path);
}

/**
 * The other name of a logical volume: `/dev/<group>/<volume>` for its name in `/dev/mapper`, and
 * vice versa. Empty for other paths.
 */
export function volumeNames(path: string): string[] {
  const volume = /^\/dev\/([^/]+)\/([^/]+)$/.exec(path);
  if (volume === null) return [];
  const [, folder, name] = volume;
  if (`/dev/${folder}/` !== DEV_MAPPER) {
    return [`${DEV_MAPPER}${doubleDashes(folder)}-${doubleDashes(name)}`];
  }
  const parts = /^((?:[^-]|--)+)-((?:[^-]|--)+)$/.exec(name);
  if (parts === null) return [];
  return [`/dev/${parts[1].replaceAll("--", "-")}/${parts[2].replaceAll("--", "-")}`];
}

/** Whether a path is a folder itself or below it. Both are absolute, without `.` and `..`. */
export function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith("/") ? folder : `${folder}/`);
}

function doubleDashes(name: string): string {
  return name.replaceAll("-", "--");
}

/** An absolute path without `.`, `..` and doubled slashes. Links are not resolved. */
export function normalizePath(storage: Storage, path: string): string {
  const parts: string[] = [];
  const from = path.startsWith("/") ? path : `${storage.workingDirectory()}/${path}`;
  for (const part of from.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}

/** The path of `to` relative to the folder of `from`: `./x`, `../y/x`. Both are absolute. */
export function relativePath(from: string, to: string): string {
  const fromParts = from.split("/").slice(1, -1);
  const toParts = to.split("/").slice(1);
  let common = 0;
  while (
    common < fromParts.length && common < toParts.length - 1 &&
    fromParts[common] === toParts[common]
  ) common++;
  const up = "../".repeat(fromParts.length - common);
  return (up === "" ? "./" : up) + toParts.slice(common).join("/");
}

/** The folder of an absolute path. */
export function folderOf(path: string): string {
  return path.slice(0, Math.max(1, path.lastIndexOf("/")));
}

/** The last part of a path. */
export function fileNameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
