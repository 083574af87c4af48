import type { Storage } from "./storage.ts";

const DEV_MAPPER = "/dev/mapper/";

/**
 * The absolute path by which an image is known: links are followed, except in `/dev/mapper`, and
 * `/dev/<group>/<volume>` of a logical volume becomes its name there, which stays the same when the
 * device behind it changes.
 *
 * @throws {SystemError} when there is no such file.
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
 * The other names of a logical volume: `/dev/<group>/<volume>` for its name in `/dev/mapper`, and the
 * other way round. None for other names.
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

/** Whether a path is a folder itself or lies below it; both absolute, without `.` and `..`. */
export function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith("/") ? folder : `${folder}/`);
}

function doubleDashes(name: string): string {
  return name.replaceAll("-", "--");
}

/** An absolute path without `.`, `..` and doubled slashes; links stay as they are. */
export function normalizePath(storage: Storage, path: string): string {
  const parts: string[] = [];
  const from = path.startsWith("/") ? path : `${storage.workingDirectory()}/${path}`;
  for (const part of from.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}

/** How a file at `from` would call one at `to`, both absolute: `./x`, `../y/x`. */
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
