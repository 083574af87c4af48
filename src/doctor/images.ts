import { systemError } from "../../ffi/errno.ts";
import type { ListedDevice } from "../control/client/device_list.ts";
import { DEVICE_LIST_PATH } from "../control/client/device_list.ts";
import { fileInName } from "../driver/layers.ts";
import { allDrivers } from "../driver/registry.ts";
import type { DiskSample } from "../observe/sample.ts";
import { examineAll, type Examined, type ExaminerCommand } from "./examination.ts";
import { type Finding, findingsOf, shellWord } from "./finding.ts";

/** More images of folders are not opened. */
const MOST_IMAGES = 10_000;
const EACH_MS = 5_000;
const ALL_MS = 60_000;
const LIST_MS = 5_000;

const images = findingsOf("images");

/** An image to open, and why it is of interest. */
interface Interest {
  readonly name: string;
  /** Such as `a disk that is served`. */
  readonly why: string;
  readonly isServed: boolean;
}

/** The images of a folder, by the ends of their names. */
async function imagesIn(folder: string): Promise<string[]> {
  const names: string[] = [];
  for await (const { name, isFile, isSymlink } of Deno.readDir(folder)) {
    const driver = isFile || isSymlink
      ? allDrivers().find(({ suffix }) => suffix !== undefined && name.endsWith(suffix))
      : undefined;
    if (driver !== undefined) {
      names.push(`${driver.type}:${folder.replace(/(.)\/+$/, "$1")}/${name}`);
    }
  }
  return names.sort();
}

/** The images of folders, and of which folders they could not be listed. */
async function imagesOfFolders(
  folders: readonly string[],
): Promise<{ names: string[]; faults: Finding[] }> {
  const names: string[] = [];
  const faults: Finding[] = [];
  for (const folder of folders) {
    const late = Promise.withResolvers<null>();
    const timer = setTimeout(() => late.resolve(null), LIST_MS);
    try {
      const found = await Promise.race([imagesIn(folder), late.promise]);
      if (found !== null) names.push(...found);
      else {
        const what = `The folder could not be listed within ${LIST_MS / 1000} s`;
        faults.push(images.error(what, folder, "look at the server that it is on"));
      }
    } catch (error) {
      const { message } = systemError(error, `Cannot list ${folder}`);
      faults.push(images.error(message, folder, `ls -ld ${shellWord(folder)}`));
    } finally {
      clearTimeout(timer);
    }
  }
  return { names, faults };
}

/** Whether an image is one that can be opened here: a file, and no server's. */
function isFile(name: string): boolean {
  return fileInName(name) !== null;
}

function interestsOf(
  { disks, listed, names }: {
    disks: readonly DiskSample[];
    listed: readonly ListedDevice[];
    names: readonly string[];
  },
): Interest[] {
  const found = new Map<string, Interest>();
  const add = (name: string, why: string, isServed: boolean): void => {
    if (isFile(name) && !found.has(name)) found.set(name, { name, why, isServed });
  };
  for (const { type, path } of disks) {
    if (path !== "") add(`${type}:${path}`, "a disk that is served", true);
  }
  for (const { name, image } of listed) add(image, `disk ${name} of ${DEVICE_LIST_PATH}`, false);
  for (const name of names) add(name, "an image of a folder", false);
  return [...found.values()];
}

/** A command that looks at an image more closely. */
function commandFor(name: string): string {
  const path = fileInName(name)?.path ?? name;
  return name.startsWith("vhd:")
    ? `vhd-util tree ${shellWord(path)}; then: vhd-util modify -n ${shellWord(path)} -p PARENT`
    : `td-util info ${shellWord(name)}; then: td-util rebase -u ${shellWord(name)} PARENT`;
}

/** Judges an image that was opened. */
export function judgeExamined(
  { name, fault, code }: Examined,
  { why, isServed }: Pick<Interest, "why" | "isServed">,
): Finding | null {
  if (fault === null) return null;
  if (code === "EPERM") {
    return images.note(`This is ${why}, and its chain was not followed: ${fault}`, name);
  }
  if (code === "EACCES") {
    return images.note(`This is ${why}, and this user may not open it: ${fault}`, name);
  }
  const now = isServed ? " It is served now, and could not be opened again." : "";
  const how = code === null ? "look at the server that the image is on" : commandFor(name);
  return images.error(`This is ${why}, and its chain is broken: ${fault}.${now}`, name, how);
}

/** Opens the images of disks that are served, of the list, and of folders. */
export async function imageFindings(
  { disks, listed, folders, command }: {
    disks: readonly DiskSample[];
    listed: readonly ListedDevice[];
    folders: readonly string[];
    command: ExaminerCommand;
  },
): Promise<Finding[]> {
  const { names, faults } = await imagesOfFolders(folders);
  const all = interestsOf({ disks, listed, names });
  const wanted = all.slice(0, MOST_IMAGES);
  const limits = { eachMs: EACH_MS, allMs: ALL_MS };
  const examined = await examineAll(wanted.map(({ name }) => name), { command, limits });
  const found = examined.map((one, index) => judgeExamined(one, wanted[index]))
    .filter((finding) => finding !== null);
  const left = all.length - examined.length;
  const rest = left === 0 ? [] : [
    images.note(
      `${left} of ${all.length} images were not opened: there are too many, or the time was over`,
    ),
  ];
  const whole = [
    images.ok(`${examined.length - found.length} images and their chains can be opened`),
  ];
  return [...faults, ...found, ...rest, ...whole];
}
