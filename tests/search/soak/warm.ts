/**
 * Uses the memory of a disk, which the kernel gives to a process on first use. So memory that grows
 * later does not grow for this reason.
 *
 * @module
 */
import { CLIENTS_THAT_KEEP_PAGES } from "../../../src/frontend/nbd/client_memory.ts";
import { Cmd, NbdClient } from "../../support/nbd_client.ts";
import { SILENCE_MS } from "./writer.ts";

/** Together, the clients ask for more than a disk has slots; a slot has 256 KiB. */
const READS = 5;
const SLOT_BYTES = 256 * 1024;
const WRITES = 2;
const WRITE_BYTES = 128 * 1024;

/**
 * Reads and writes in all slots of a disk with many clients. The tapdisk is stopped while they send,
 * so that it has all requests at once.
 */
export async function warmUp(pid: number, socket: string): Promise<void> {
  const clients: NbdClient[] = [];
  try {
    for (let i = 0; i < CLIENTS_THAT_KEEP_PAGES; i++) {
      clients.push((await NbdClient.open(socket, { silenceMs: SILENCE_MS })).client);
    }
    Deno.kill(pid, "SIGSTOP");
    try {
      for (const client of clients) await sendReads(client);
    } finally {
      Deno.kill(pid, "SIGCONT");
    }
    await Promise.all(clients.map((client) => Promise.all([sendWrites(client), receive(client)])));
  } finally {
    for (const client of clients) client.close();
  }
}

async function sendReads(client: NbdClient): Promise<void> {
  for (let i = 0; i < READS; i++) {
    await client.request({ command: Cmd.Read, offset: i * SLOT_BYTES, length: SLOT_BYTES });
  }
}

/** Writes to the part of the disk that belongs to other programs, none of which is connected. */
async function sendWrites(client: NbdClient): Promise<void> {
  const payload = new Uint8Array(WRITE_BYTES);
  for (let i = 0; i < WRITES; i++) {
    await client.request({ command: Cmd.Write, offset: i * WRITE_BYTES, payload });
  }
}

async function receive(client: NbdClient): Promise<void> {
  for (let i = 0; i < READS + WRITES; i++) await client.reply();
}
