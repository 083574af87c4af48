import { decodeName } from "../../ffi/names.ts";
import { messageOf } from "../../ffi/errno.ts";
import { effectiveUser } from "../../ffi/process.ts";
import {
  DEVICE_LIST_PATH,
  type ListedDevice,
  parseDeviceList,
} from "../control/client/device_list.ts";
import { inventory, type InventoryEntry } from "../control/client/inventory.ts";
import { FileGatherer } from "../observe/files.ts";
import { Gatherer } from "../observe/gather.ts";
import type { DiskSample } from "../observe/sample.ts";
import { deviceFacts, hungTaskPanic, judgeDevices, judgeDisks, judgeRoom } from "./disks.ts";
import type { ExaminerCommand } from "./examination.ts";
import { type Check, type Finding, findingsOf, runCheck } from "./finding.ts";
import { imageFindings } from "./images.ts";
import { asyncFacts, driverFacts, judgeAsync, judgeDrivers } from "./kernel.ts";
import { leftoverFindings, recoverFindings, silentFindings } from "./leftovers.ts";
import { judgeLimits, limitFacts } from "./limits.ts";
import { judgeLvm, lvmFacts } from "./lvm.ts";
import { judgePrograms, libraryFindings, programFacts } from "./programs.ts";
import { folderFindings, openerFindings, unitFindings } from "./system.ts";

/** How long a check may take; that of images has more. */
const CHECK_MS = 10_000;
const IMAGES_MS = 90_000;
/** How long tapdisks and filesystems may take to answer. */
const ANSWER_MS = 3_000;

/** What is served, as far as this user may see it. */
interface Served {
  readonly present: readonly InventoryEntry[];
  readonly disks: readonly DiskSample[];
  readonly pids: readonly number[];
}

const served = findingsOf("tapdisks");
const list = findingsOf("list of disks");

async function lookAtServed(): Promise<Served | Finding> {
  try {
    const present = inventory();
    const { disks, pids } = await new Gatherer({ timeoutMs: ANSWER_MS }).gather();
    return { present, disks, pids };
  } catch (error) {
    const who = effectiveUser() === 0
      ? undefined
      : "run this as root, or as the user of the tapdisks";
    return served.note(
      `Tapdisks and their disks were not looked at: ${messageOf(error)}`,
      undefined,
      who,
    );
  }
}

/** The disks of the list, and what is wrong with it. */
function readList(): { listed: ListedDevice[]; findings: Finding[] } {
  let text: string;
  try {
    text = decodeName(Deno.readFileSync(DEVICE_LIST_PATH));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return { listed: [], findings: [] };
    const what = `The list was not read: ${messageOf(error)}`;
    return { listed: [], findings: [list.note(what, DEVICE_LIST_PATH)] };
  }
  const { devices, faults } = parseDeviceList(text);
  const findings = faults.map(({ line, reason }) =>
    list.error(
      `This line cannot be read: ${reason}`,
      `${DEVICE_LIST_PATH}:${line}`,
      "mend the line; its comments explain the options",
    )
  );
  return { listed: devices, findings };
}

function checksOf(
  { present, disks, pids }: Served,
  { listed, folders, command }: {
    listed: readonly ListedDevice[];
    folders: readonly string[];
    command: ExaminerCommand;
  },
): Check[] {
  const nodes = disks.flatMap(({ node }) => node === null ? [] : [node]);
  return [
    { name: "drivers", run: () => judgeDrivers(driverFacts(), listed) },
    { name: "asynchronous I/O", run: () => judgeAsync(asyncFacts()) },
    { name: "limits", run: () => judgeLimits(limitFacts(pids)) },
    { name: "LVM", run: async () => judgeLvm(await lvmFacts(), nodes) },
    { name: "control folder", run: folderFindings },
    { name: "tapdisks", run: () => silentFindings(present) },
    { name: "leftovers", run: () => leftoverFindings(present) },
    { name: "disks to recover", run: () => recoverFindings(present) },
    { name: "disks", run: () => judgeDisks(disks) },
    {
      name: "room",
      run: async () =>
        judgeRoom(disks, await new FileGatherer({ timeoutMs: ANSWER_MS }).gather(disks)),
    },
    { name: "block devices", run: () => judgeDevices(deviceFacts(disks), hungTaskPanic()) },
    { name: "programs", run: () => judgePrograms(programFacts(pids)) },
    { name: "libraries", run: libraryFindings },
    { name: "systemd", run: () => unitFindings(listed) },
    { name: "udev and multipath", run: () => openerFindings(listed) },
    { name: "images", run: () => imageFindings({ disks, listed, folders, command }) },
  ];
}

/**
 * Looks for what is wrong with this host. Nothing is changed, and nothing is waited for without a limit.
 *
 * @param folders Whose images are opened, too.
 * @param command Opens images; see `examination.ts`.
 */
export async function examineHost(
  { folders, command }: { folders: readonly string[]; command: ExaminerCommand },
): Promise<Finding[]> {
  const { listed, findings } = readList();
  const seen = await lookAtServed();
  const isSeen = "present" in seen;
  if (!isSeen) findings.push(seen);
  const checks = checksOf(isSeen ? seen : { present: [], disks: [], pids: [] }, {
    ...{ listed, folders, command },
  });
  // What needs tapdisks would say that all is well.
  const blind = new Set(["tapdisks", "leftovers", "disks to recover", "disks", "room"]);
  const ran = checks.filter(({ name }) => isSeen || !blind.has(name));
  const answers = await Promise.all(
    ran.map((check) => runCheck(check, check.name === "images" ? IMAGES_MS : CHECK_MS)),
  );
  if (effectiveUser() !== 0) {
    const what =
      "Some things are not visible without root: which programs and files processes of " +
      "other users have, devices, and folders of others";
    findings.push(findingsOf("rights").note(what, undefined, "run this as root"));
  }
  return [...findings, ...answers.flat()];
}
