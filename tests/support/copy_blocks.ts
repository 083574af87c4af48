/**
 * Copies of disks over NBD, by block status: as sparse_dd does in a storage migration.
 *
 * @module
 */
import { Cmd, NbdClient } from "./nbd_client.ts";

const PIECE_BYTES = 2 << 20;
const STATUS_BYTES = 32 << 20;
const ZERO = 2;

/** The extents of a part of a disk: length, and whether it holds data. */
async function extentsOf(
  client: NbdClient,
  offset: number,
  length: number,
): Promise<[length: number, isData: boolean][]> {
  const { extents } = await client.do({ command: Cmd.BlockStatus, offset, length });
  return extents.map(([bytes, flags]) => [bytes, (flags & ZERO) === 0]);
}

/** Writes what a disk holds to another, which is blank. Returns how many bytes those were. */
export async function copyBlocks(from: string, to: string): Promise<number> {
  const { client: source, info } = await NbdClient.open(from, { metaContext: true });
  const { client: target } = await NbdClient.open(to);
  let copied = 0;
  for (let at = 0; at < info.sizeBytes;) {
    const wanted = Math.min(STATUS_BYTES, info.sizeBytes - at);
    for (const [bytes, isData] of await extentsOf(source, at, wanted)) {
      const end = Math.min(at + bytes, info.sizeBytes);
      if (isData) copied += await copyRange(source, target, at, end);
      at = end;
    }
  }
  await target.flush();
  await source.disconnect();
  await target.disconnect();
  return copied;
}

async function copyRange(
  source: NbdClient,
  target: NbdClient,
  from: number,
  end: number,
): Promise<number> {
  for (let at = from; at < end; at += PIECE_BYTES) {
    await target.write(at, await source.read(at, Math.min(PIECE_BYTES, end - at)));
  }
  return end - from;
}

/** The content of a disk. */
export async function readAll(socket: string): Promise<Uint8Array<ArrayBuffer>> {
  const { client, info } = await NbdClient.open(socket);
  const content = new Uint8Array(info.sizeBytes);
  for (let at = 0; at < content.length; at += PIECE_BYTES) {
    content.set(await client.read(at, Math.min(PIECE_BYTES, content.length - at)), at);
  }
  await client.disconnect();
  return content;
}
