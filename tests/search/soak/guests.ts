/**
 * Programs of others that write to the first part of a disk and verify it: fio and qemu-io.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import { fio } from "../../support/fio.ts";
import { run } from "../../support/tools.ts";
import type { Soak } from "./context.ts";
import type { SoakDisk } from "./disk.ts";
import { Finding } from "./finding.ts";

const FIO_MIB = 4;
const TIMEOUT_MS = 180_000;
/** A program whose connection was cut is killed within this time. */
const LOOK_MS = 500;
/** What fio and qemu-io print when they read something else than they wrote. */
const WRONG_DATA = /verify|Pattern verification failed|crc32c/i;

/** fio's options in front of its own message may contain the words of a failed verification. */
function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.slice(text.indexOf("\n") + 1);
}

/** What programs of others are given: a disk, and when they are to end. */
interface Visit {
  readonly disk: SoakDisk;
  readonly random: Random;
  readonly signal: AbortSignal;
}

async function runFio(soak: Soak, { disk, random, signal }: Visit): Promise<void> {
  const seconds = 5 + random.below(15);
  const [job] = await fio(disk.uri, [
    ...["rw=randwrite", "bssplit=512/10:4k/60:16k/20:64k/10", `size=${FIO_MIB}M`],
    ...[`iodepth=${1 + random.below(16)}`, "verify=crc32c", "verify_fatal=1"],
    ...["verify_interval=512", "verify_backlog=64", "randrepeat=0", "fsync=64"],
    ...["time_based", `runtime=${seconds}`, `rate_iops=${50 + random.below(150)}`],
    // A job that loses its connection may spin for ever. As a thread, it ends with fio.
    "thread",
  ], { timeoutMs: TIMEOUT_MS, signal });
  if (job.error !== 0) throw new Finding(`fio ended with error ${job.error}`);
  soak.journal.count("requests of fio", job.read.total_ios + job.write.total_ios);
}

async function runQemuIo(soak: Soak, { disk, random, signal }: Visit): Promise<void> {
  const byte = 1 + random.below(254);
  const offsetKib = FIO_MIB * 1024 + random.below(2048);
  const lengthKib = 4 + random.below(1024);
  const commands = [
    `write -P ${byte} ${offsetKib}k ${lengthKib}k`,
    `write -z -u ${offsetKib + 1}k 1k`,
    "flush",
    `read -P ${byte} ${offsetKib}k 1k`,
    `read -P 0 ${offsetKib + 1}k 1k`,
    `read -P ${byte} ${offsetKib + 2}k ${lengthKib - 2}k`,
  ];
  const args = ["-f", "raw", "-t", "none", ...commands.flatMap((line) => ["-c", line]), disk.uri];
  const { code, stdout, stderr } = await run("qemu-io", args, { timeoutMs: TIMEOUT_MS, signal });
  if (code !== 0 || WRONG_DATA.test(stdout)) {
    throw new Finding(`qemu-io ${commands.join("; ")}:\n${stdout}${stderr}`);
  }
  soak.journal.count("runs of qemu-io");
}

const GUESTS = { fio: runFio, "qemu-io": runQemuIo } as const;

/** Runs one of these programs again and again, on one disk after the other. */
export async function inviteGuests(
  soak: Soak,
  guest: keyof typeof GUESTS,
  { lane, pauseMs }: { lane: number; pauseMs: number },
): Promise<void> {
  const random = soak.random(`${guest} ${lane}`);
  while (!soak.isEnding) {
    await soak.sleep(random.below(2 * pauseMs));
    const free = soak.busyDisks.filter(({ hasGuest, place }) => !hasGuest && place !== null);
    const disk = free[random.below(Math.max(1, free.length))];
    if (disk === undefined || soak.isEnding) continue;
    const { interruptions } = disk;
    const leaving = new AbortController();
    const timer = setInterval(() => {
      if (disk.interruptions !== interruptions || soak.finding !== null) leaving.abort();
    }, LOOK_MS);
    disk.hasGuest = true;
    soak.journal.note(disk.name, `${guest} begins`);
    try {
      await GUESTS[guest](soak, { disk, random, signal: leaving.signal });
      soak.journal.note(disk.name, `${guest} has verified`);
    } catch (error) {
      // A client whose connection is cut fails, but it must not have read wrong data.
      const isOurs = disk.interruptions !== interruptions;
      if (!isOurs || WRONG_DATA.test(reasonOf(error))) {
        throw new Finding(`${guest} on ${disk.name} failed`, { cause: error });
      }
      soak.journal.note(disk.name, `${guest} lost its connection`);
    } finally {
      clearInterval(timer);
      disk.hasGuest = false;
    }
  }
}
