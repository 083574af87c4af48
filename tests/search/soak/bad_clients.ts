/**
 * Clients that misbehave. None of them may change a byte of a disk or disturb other clients.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import { Cmd, NbdClient, Opt, packed, requestHeader } from "../../support/nbd_client.ts";
import type { Soak } from "./context.ts";
import type { SoakDisk } from "./disk.ts";
import { SECTOR_BYTES } from "./stamps.ts";
import { isHangUp } from "./writer.ts";

type Misdeed = (soak: Soak, disk: SoakDisk, random: Random) => Promise<void>;

/** What a bad client tells the server to write; no read may ever return it. */
const POISON = 0xee;

function socketOf(disk: SoakDisk): string {
  if (disk.place === null) throw new Deno.errors.NotFound();
  return disk.place.socket;
}

/** Many clients that leave at some point of the handshake. */
async function leaveInHandshake(_soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  for (let i = 0; i < 20; i++) {
    using client = await NbdClient.connect(socketOf(disk));
    if (random.chance(0.3)) continue;
    await client.greet();
    if (random.chance(0.3)) continue;
    await client.option(Opt.Go, packed([4, 0]));
    if (random.chance(0.5)) await client.optionReply();
  }
}

/** Asks for more than a socket holds, and reads nothing of it. */
async function readSlowly(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const { client } = await NbdClient.open(socketOf(disk));
  using _closing = client;
  for (let i = 0; i < 40; i++) {
    await client.request({ command: Cmd.Read, offset: i << 17, length: 1 << 17 });
  }
  await soak.sleep(500 + random.below(4000));
}

/** Announces a write to sectors that others use, sends a part of its data, and leaves. */
async function stopInWrite(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const { client, info } = await NbdClient.open(socketOf(disk));
  using _closing = client;
  const length = 65536;
  const sector = random.below((info.sizeBytes - length) / SECTOR_BYTES);
  await client.send(requestHeader({ command: Cmd.Write, offset: sector * SECTOR_BYTES, length }));
  await client.send(new Uint8Array(random.below(length - 1)).fill(POISON));
  await soak.sleep(random.below(2000));
}

/** Sends bytes that are no requests. */
async function sendGarbage(_soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const { client } = await NbdClient.open(socketOf(disk));
  using _closing = client;
  await client.send(new Uint8Array(1000).map(() => 1 + random.below(255)));
  await client.hasHungUp();
}

/** Sends requests that must be refused. */
async function askForTooMuch(_soak: Soak, disk: SoakDisk): Promise<void> {
  const { client, info } = await NbdClient.open(socketOf(disk));
  using _closing = client;
  const payload = new Uint8Array(4096).fill(POISON);
  const requests = [
    { command: Cmd.Write, offset: info.sizeBytes, payload },
    { command: Cmd.Write, offset: info.sizeBytes - 512, payload },
    { command: Cmd.Write, offset: 2n ** 64n - 4096n, payload },
    { command: Cmd.Read, offset: info.sizeBytes, length: 512 },
    { command: Cmd.WriteZeroes, offset: info.sizeBytes - 512, length: 0xffff_fe00 },
    { command: Cmd.Trim, offset: info.sizeBytes - 512, length: 1024 },
    { command: 77, offset: 0, length: 512 },
  ];
  for (const request of requests) {
    const { error } = await client.ask(request);
    if (error === 0) throw new Error(`${disk.name}: a request was not refused: ${request.command}`);
  }
}

/** Opens more connections than it uses. */
async function crowd(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const clients: NbdClient[] = [];
  try {
    for (let i = 0; i < 40; i++) clients.push((await NbdClient.open(socketOf(disk))).client);
    await soak.sleep(random.below(1000));
  } finally {
    for (const client of clients) client.close();
  }
}

const MISDEEDS: readonly (readonly [string, Misdeed])[] = [
  ["clients that left in the handshake", leaveInHandshake],
  ["clients that did not read", readSlowly],
  ["clients that stopped within a write", stopInWrite],
  ["clients that sent garbage", sendGarbage],
  ["clients that asked for too much", askForTooMuch],
  ["crowds of clients", crowd],
];

/** Runs bad clients, one after the other, until the soak ends. */
export async function misbehave(soak: Soak, pauseMs: number): Promise<void> {
  const random = soak.random("bad clients");
  while (!soak.isEnding) {
    await soak.sleep(random.below(2 * pauseMs));
    const disk = soak.busyDisks[random.below(soak.busyDisks.length)];
    const [name, misdeed] = MISDEEDS[random.below(MISDEEDS.length)];
    const { interruptions } = disk;
    soak.journal.note(disk.name, `bad client: ${name}`);
    try {
      await misdeed(soak, disk, random);
      soak.journal.count(name);
    } catch (error) {
      // The server may hang up on such a client at any moment.
      if (!isHangUp(error) && disk.interruptions === interruptions) throw error;
    }
  }
}
