import { Errno } from "../../ffi/errno.ts";
import type { ServerCondition } from "../driver/condition.ts";
import type { ToldActor, ToldFacts } from "../control/protocol/explain.ts";
import type { ImageFacts } from "../vbd/disk_facts.ts";
import type { Room } from "./rooms.ts";

/** What a disk waits for, as programs name it. */
export type FindingKind =
  | "no-image"
  | "fault"
  | "paused"
  | "pausing"
  | "not-resumed"
  | "reopening"
  | "full"
  | "failing"
  | "server-lost"
  | "server-silent"
  | "hung"
  | "limit"
  | "share"
  | "client"
  | "slots"
  | "room"
  | "slow"
  | "mirror"
  | "busy"
  | "idle";

/** A thing that a disk waits for, or that is not in order. */
export interface Finding {
  readonly kind: FindingKind;
  /** What is so, in sentences. */
  readonly says: string;
  /** What to do about it; empty for nothing. */
  readonly advice: string;
}

/** An answer is late after this. */
const LATE_MS = 2_000;
/** A client that has not moved for so long does not read. */
const STUCK_MS = 500;
/** An image is slow when its operations take this, and so many times those of the others. */
const SLOW_MS = 20;
const SLOW_RATIO = 5;

const ofRoom: readonly number[] = [Errno.ENOSPC, Errno.EDQUOT];

/** A time, for people. */
function timeText(ms: number): string {
  if (ms < 1000) return `${ms.toFixed(ms < 10 ? 2 : 0)} ms`;
  if (ms < 120_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
}

function bytesText(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return `${unit === 0 ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}

function requestsText(count: number): string {
  return count === 1 ? "1 request" : `${count} requests`;
}

/** Requests that do something, such as `1 request waits` and `2 requests wait`. */
function requestsDo(count: number, verb: "wait" | "fail"): string {
  return count === 1 ? `1 request ${verb}s` : `${count} requests ${verb}`;
}

function actorText({ pid, command, parent }: ToldActor): string {
  const by = parent === null
    ? ""
    : `, started by process ${parent.pid}${parent.command === "" ? "" : `: ${parent.command}`}`;
  return `${command === "" ? "a command that has ended" : command} (process ${pid}${by})`;
}

function device({ tapdisk, minor }: ToldFacts): string {
  return `-p ${tapdisk} -m ${minor}`;
}

/** The file for which there is no room, so that its filesystem is worth a look; null for none. */
export function roomWanted({ trouble }: ToldFacts): string | null {
  return trouble !== null && ofRoom.includes(trouble.errno) ? trouble.file : null;
}

/**
 * Why requests of a disk do not go on, or could fail; the most telling first. Empty when all is well.
 *
 * @param room That of the file that `roomWanted` names; null when it names none.
 */
export function findings(facts: ToldFacts, room: Room | null): Finding[] {
  if (facts.name === "") {
    const advice = `Open one: tap-ctl open ${device(facts)} -a TYPE:PATH`;
    return [{ kind: "no-image", says: "There is no image.", advice }];
  }
  if (facts.phase === "failed") {
    return [{
      kind: "fault",
      says: "A fault of tapdisk has ended it: requests fail with EIO.",
      advice: `See the log for the fault. Open its image again: tap-ctl unpause ${device(facts)}`,
    }];
  }
  const { trouble } = facts;
  return [
    ...pauseFindings(facts),
    ...(trouble === null ? [] : [troubleFinding(facts, trouble, room)]),
    ...serverFindings(facts),
    ...hungFindings(facts),
    ...limitFindings(facts),
    ...clientFindings(facts),
    ...slowFindings(facts),
    ...mirrorFindings(facts),
  ];
}

function pauseFindings(facts: ToldFacts): Finding[] {
  const { phase, paused, notResumed, reopening, requests: { pause, disk } } = facts;
  const found: Finding[] = [];
  const since = paused === null ? "" : ` for ${timeText(paused.sinceMs)}`;
  const who = paused === null || paused.by === null
    ? "it is not known by whom"
    : `by ${actorText(paused.by)}`;
  const held = pause.requests === 0 ? "" : ` ${requestsDo(pause.requests, "wait")}.`;
  if (reopening !== null) {
    const says = reopening === ""
      ? "Its images are being opened anew."
      : `Its images are being opened anew: ${reopening}.`;
    const advice =
      "It is tried again each second. See that the files are there and nobody locks them.";
    found.push({ kind: "reopening", says: `${says}${held}`, advice });
  } else if (phase === "paused") {
    const says = `It has been paused${since}, ${who}.${held}`;
    const advice = `Whoever paused it is expected to resume it. If that has died: tap-ctl unpause ${
      device(facts)
    }`;
    found.push({ kind: "paused", says, advice });
  } else if (phase === "pausing") {
    const owed = `${requestsText(disk.requests)} at the disk, the oldest for ${
      timeText(disk.longestMs)
    }`;
    const says = `It is being paused${since}, ${who}: that waits for ${owed}.${held}`;
    found.push({ kind: "pausing", says, advice: "See below for what these wait for." });
  }
  if (notResumed !== null && phase === "paused") {
    found.push({
      kind: "not-resumed",
      says: `It could not be opened again ${timeText(notResumed.sinceMs)} ago: ${notResumed.why}.`,
      advice: `Mend that, then: tap-ctl unpause ${device(facts)}`,
    });
  }
  return found;
}

function troubleFinding(
  facts: ToldFacts,
  { sinceMs, requests, tries, errno, error, file }: NonNullable<ToldFacts["trouble"]>,
  room: Room | null,
): Finding {
  const since = `for ${timeText(sinceMs)}, ${tries} tries failed`;
  if (ofRoom.includes(errno) && file !== null) {
    const { mount, freeBytes } = room ?? { mount: file, freeBytes: null };
    const free = freeBytes === null ? "" : `: ${bytesText(freeBytes)} are free on ${mount}`;
    return {
      kind: "full",
      says: `${
        requestsDo(requests, "wait")
      } ${since}, as there is no room for ${file} (${error})${free}.`,
      advice: `Make room on ${mount}. The requests are tried again each second, and go on then.`,
    };
  }
  const where = file === null ? "" : ` at ${file}`;
  const servers = facts.images.some(({ condition }) =>
    condition?.kind === "server" && condition.lostMs !== null
  );
  return {
    kind: "failing",
    says: `${requestsDo(requests, "fail")} with ${error}${where} ${since}.`,
    advice: servers
      ? "They are made again when the server is back."
      : "They are tried again each second. See the kernel's log (dmesg) for the disk or mount.",
  };
}

function serverFindings({ images }: ToldFacts): Finding[] {
  return images.flatMap(({ condition }): Finding[] => {
    if (condition?.kind !== "server") return [];
    if (condition.lostMs !== null) return [lostServer(condition)];
    const { image, asked, oldestMs } = condition;
    if (asked === 0 || oldestMs < LATE_MS) return [];
    return [{
      kind: "server-silent",
      says: `The server of ${image} has not answered ${requestsText(asked)}, the oldest for ${
        timeText(oldestMs)
      }.`,
      advice: image.startsWith("rbd:")
        ? "See the state of the cluster: ceph health detail."
        : "See whether it runs. After 30 to 35 seconds the connection is given up, and made again.",
    }];
  });
}

function lostServer({ image, lostMs, why, nextTryMs }: ServerCondition): Finding {
  const next = nextTryMs === null
    ? "an attempt to connect is under way"
    : `the next attempt to connect is in ${timeText(nextTryMs)}`;
  const reason = why === "" ? "" : ` (${why})`;
  return {
    kind: "server-lost",
    says: `There has been no connection to the server of ${image} for ${
      timeText(lostMs ?? 0)
    }${reason}; ${next}.`,
    advice:
      "Start the server, or see that it can be reached. Requests wait, and are made again then.",
  };
}

function hungFindings({ images, requests: { disk, room } }: ToldFacts): Finding[] {
  const found: Finding[] = [];
  // An image that has just got an operation after a rest is not hung, although none has ended for long.
  const isQuiet = ({ quietMs = null }: ImageFacts): boolean => (quietMs ?? 0) >= LATE_MS;
  const quiet = disk.longestMs < LATE_MS ? [] : images.filter(isQuiet);
  for (const { file, name, pending, endedMs } of quiet) {
    const last = endedMs === null
      ? "none has ended since it was opened"
      : `the last one ended ${timeText(endedMs)} ago`;
    found.push({
      kind: "hung",
      says:
        `The disk of ${file ?? name} does not answer: it has ${pending} ${
          pending === 1 ? "operation" : "operations"
        }, and ${last}. ` +
        `The oldest request has waited ${timeText(disk.longestMs)}.`,
      advice: "See the kernel's log (dmesg), the mount (NFS with hard waits for its server) and " +
        "multipath. tap-ctl close -f does not wait for servers, but it does for the kernel.",
    });
  }
  if (room.longestMs >= LATE_MS) {
    found.push({
      kind: "room",
      says: `${requestsDo(room.requests, "wait")} for room in the disk queue, the first for ${
        timeText(room.longestMs)
      }: other disks of this tapdisk have it.`,
      advice: "Explain the other disks of this tapdisk: one of them hangs.",
    });
  }
  return found;
}

function limitFindings(facts: ToldFacts): Finding[] {
  const { requests: { limit }, limits, images } = facts;
  const found: Finding[] = [];
  if (limit.requests > 0) {
    const all = Object.entries(limits ?? {}).filter(([name, value]) =>
      name !== "burst_ms" && value !== 0
    ).map(([name, value]) => `${name.replace("_", " ")} ${value}`).join(", ");
    found.push({
      kind: "limit",
      says: `${requestsText(limit.requests)} ${
        limit.requests === 1 ? "is" : "are"
      } held back by its rate limits (${all}), the first for ${timeText(limit.longestMs)}.`,
      advice: `That is as it was asked for. Other limits: tap-ctl limit ${device(facts)}`,
    });
  }
  for (const { condition } of images) {
    if (condition?.kind !== "share" || condition.waiting === 0) continue;
    found.push({
      kind: "share",
      says: `${
        requestsDo(condition.waiting, "wait")
      } for a share of the rate of writing at ${condition.bridge}.`,
      advice: "td-rated grants it. See its rate, and the other disks that share it.",
    });
  }
  return found;
}

function clientFindings({ clients, slots }: ToldFacts): Finding[] {
  const found: Finding[] = [];
  for (const { client, held, stuckMs } of clients) {
    if (stuckMs === null || stuckMs < STUCK_MS) continue;
    found.push({
      kind: "client",
      says:
        `${client.charAt(0).toUpperCase()}${
          client.slice(1)
        } has not taken its answers in, or not sent the ` +
        `data of a write, for ${timeText(stuckMs)}; it has ${held} of ${slots.all} slots.`,
      advice: "See whether the client is stopped or overloaded. After a minute it is hung up on.",
    });
  }
  const waiting = clients.filter(({ waits }) => waits).length;
  if (waiting > 0 && slots.free === 0) {
    found.push({
      kind: "slots",
      says: `${waiting} of ${clients.length} clients wait for slots: all ${slots.all} are taken.`,
      advice: "Requests come faster than they end. See what they wait for.",
    });
  }
  return found;
}

/** How long operations of an image take; null when that is not known. */
function meanOf({ meanMs, condition }: ImageFacts): number | null {
  return condition?.kind === "server" ? condition.meanMs : meanMs;
}

function slowFindings({ images, requests: { disk } }: ToldFacts): Finding[] {
  if (disk.requests === 0) return [];
  return images.flatMap((image, index): Finding[] => {
    const meanMs = meanOf(image);
    if (meanMs === null || meanMs < SLOW_MS) return [];
    const others = images.filter((other) => other !== image).flatMap((other) =>
      meanOf(other) ?? []
    );
    if (others.some((other) => other * SLOW_RATIO > meanMs)) return [];
    const rest = others.length === 0
      ? ""
      : `, those of the other layers ${timeText(Math.max(...others))} at most`;
    const which = index === 0 ? "" : `, layer ${index + 1} of ${images.length},`;
    return [{
      kind: "slow",
      says: `Operations of ${image.name}${which} took ${timeText(meanMs)} of late${rest}.`,
      advice: index === 0
        ? "Its storage is slow, or has much else to do."
        : "The storage of this layer is slow, or has much else to do. Coalesce it, or copy it elsewhere.",
    }];
  });
}

function mirrorFindings(facts: ToldFacts): Finding[] {
  const { secondary } = facts;
  if (secondary?.state === "failed") {
    const advice = `Mirror it anew: tap-ctl pause ${device(facts)}, then unpause -2 IMAGE`;
    return [{
      kind: "mirror",
      says: `Its mirror ${secondary.name} has failed, and lacks writes since.`,
      advice,
    }];
  }
  if (secondary?.state === "alone") {
    return [{
      kind: "full",
      says: `Its image is full: writes go to ${secondary.name} alone.`,
      advice: "The disk needs both images from now on. Copy it to where there is room.",
    }];
  }
  return [];
}

/** What a disk did between two looks that found nothing that it waits for. */
export function healthFinding(before: ToldFacts, after: ToldFacts, passedMs: number): Finding {
  const kinds = ["read", "write", "flush"] as const;
  const done = kinds.flatMap((kind) => {
    const [a, b] = [before.ended[kind], after.ended[kind]];
    const requests = b.requests - a.requests;
    if (requests <= 0) return [];
    const meanUs = Math.max(0, (b.mean * b.requests - a.mean * a.requests) / requests);
    const rate = (requests * 1000 / passedMs).toFixed(0);
    const name = kind === "flush" ? "flushes" : `${kind}s`;
    return [`${rate} ${name} a second, ${timeText(meanUs / 1000)} each`];
  });
  const { disk } = after.requests;
  if (done.length === 0 && disk.requests === 0) {
    const clients = after.clients.length === 1
      ? "1 NBD client is"
      : `${after.clients.length} NBD clients are`;
    const says = `It is idle: no request has come, and ${clients} connected.`;
    return { kind: "idle", says, advice: "" };
  }
  const what = done.length === 0 ? "no request has ended" : done.join("; ");
  return {
    kind: "busy",
    says: `It waits for nothing but its disk: ${what}; ${requestsText(disk.requests)} at the disk.`,
    advice: "",
  };
}
