/**
 * Uses the memory of a disk's slots, which the kernel gives to a process on first use. So memory that
 * grows later does not grow for this reason.
 *
 * @module
 */
import { Cmd, NbdClient } from "../../support/nbd_client.ts";
import { SILENCE_MS } from "./writer.ts";

/** A client has no more slots than it leaves free, so that it takes several to use them all. */
const CLIENTS = 4;
const REQUESTS = 40;
const SLOT_BYTES = 256 * 1024;

export async function warmUp(socket: string): Promise<void> {
  const clients: NbdClient[] = [];
  try {
    for (let i = 0; i < CLIENTS; i++) {
      clients.push((await NbdClient.open(socket, { silenceMs: SILENCE_MS })).client);
    }
    await Promise.all(clients.map(async (client) => {
      const send = async (): Promise<void> => {
        for (let i = 0; i < REQUESTS; i++) {
          await client.request({ command: Cmd.Read, offset: i * SLOT_BYTES, length: SLOT_BYTES });
        }
      };
      const receive = async (): Promise<void> => {
        for (let i = 0; i < REQUESTS; i++) await client.reply();
      };
      await Promise.all([send(), receive()]);
    }));
  } finally {
    for (const client of clients) client.close();
  }
}
