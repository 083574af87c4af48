/**
 * A client reaches nothing but its disk. All that a process sends to the clients of some disks is searched
 * for what the client of another disk wrote: replies, errors and holes never have bytes that were in a slot
 * or a buffer before.
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import {
  Cmd,
  CmdFlag,
  infoContent,
  joined,
  NbdClient,
  Opt,
  requestHeader,
} from "../support/nbd_client.ts";
import { createVhd, type Disk, needsServed, snapshotVhd, withTapdisks } from "../support/served.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 16;
const DISK_BYTES = DISK_MIB * MIB;
const served = needsServed();
/** Repeated in all that the other client writes and reads. */
const MARK = crypto.getRandomValues(new Uint8Array(16));

function marked(lengthBytes: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(lengthBytes);
  for (let at = 0; at < lengthBytes; at += MARK.length) bytes.set(MARK, at);
  return bytes;
}

/** Writes and reads a whole disk with many requests in flight, so that every slot has held the mark. */
async function fillSlots({ socket }: Disk): Promise<void> {
  const { client } = await NbdClient.open(socket);
  using _ = client;
  const piece = marked(256 * 1024);
  const requests: Uint8Array[] = [];
  for (let offset = 0; offset < DISK_BYTES; offset += piece.length) {
    requests.push(requestHeader({ command: Cmd.Write, offset, length: piece.length }), piece);
  }
  for (let offset = 0; offset < DISK_BYTES; offset += MIB) {
    requests.push(requestHeader({ command: Cmd.Read, offset, length: MIB }));
  }
  requests.push(requestHeader({ command: Cmd.Disc }));
  await Promise.all([client.send(joined(...requests)), client.drain()]);
}

/** Reads of all sizes, at the ends and over them, status, and requests that fail. */
function questions(): Uint8Array {
  const requests: Uint8Array[] = [];
  const ask = (command: number, offset: number, length: number, flags = 0): void => {
    requests.push(requestHeader({ command, offset, length, flags, cookie: requests.length }));
  };
  for (const length of [1, 511, 512, 4096, 65536, 256 * 1024, MIB, 2 * MIB]) {
    for (const offset of [0, 512, MIB - 512, 4 * MIB, DISK_BYTES - length, DISK_BYTES - 512]) {
      ask(Cmd.Read, offset, length);
      ask(Cmd.Read, offset, length, CmdFlag.Df);
    }
  }
  ask(Cmd.Read, 0, 0);
  ask(Cmd.Read, DISK_BYTES, 512);
  ask(Cmd.Read, 2 ** 52, 4096);
  ask(Cmd.BlockStatus, 0, DISK_BYTES);
  ask(Cmd.BlockStatus, DISK_BYTES - 512, 1024);
  ask(Cmd.Cache, 0, 4096);
  ask(99, 0, 4096);
  ask(Cmd.Flush, 0, 0);
  ask(Cmd.Trim, 0, 4096);
  ask(Cmd.Read, 0, 65536);
  ask(Cmd.Disc, 0, 0);
  return joined(...requests);
}

/** Makes slots of a client hold the mark, and its disk not. */
async function markSlots(client: NbdClient): Promise<void> {
  const payload = marked(256 * 1024);
  const { sent, offset } = { sent: 32, offset: 4096 };
  for (let i = 0; i < sent; i++) await client.request({ command: Cmd.Write, offset, payload });
  for (let i = 0; i < sent; i++) assert.equal((await client.reply()).error, 0);
  const length = offset + payload.length;
  await client.do({ command: Cmd.WriteZeroes, offset: 0, length });
}

/** All bytes that a server sends from the handshake on. */
async function allReplies({ socket }: Disk, how: "simple" | "structured"): Promise<Uint8Array> {
  const client = await NbdClient.connect(socket);
  using _ = client;
  await client.greet();
  if (how === "structured") await client.acknowledged(Opt.StructuredReply);
  await client.negotiate(Opt.Info, infoContent("another export"));
  await client.acknowledged(Opt.Go, infoContent(""));
  await markSlots(client);
  const received = client.collect();
  await client.send(questions());
  return await received;
}

const FILLS = 2;

Deno.test({
  name: `a client never gets bytes of another disk or request${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      for (const name of ["secret.raw", "short.raw"]) {
        Deno.writeFileSync(`${folder}/${name}`, new Uint8Array());
        Deno.truncateSync(`${folder}/${name}`, DISK_BYTES);
      }
      const secret = await tapdisks.serve(`aio:${folder}/secret.raw`);
      const { pid } = secret;
      const empty = await createVhd(`${folder}/empty.vhd`, DISK_MIB);
      const child = await snapshotVhd(
        `${folder}/child.vhd`,
        await createVhd(`${folder}/base.vhd`, DISK_MIB),
      );
      const options = ["--timeout", "1"];
      const others: Disk[] = [];
      const images = [`vhd:${empty}`, `vhd:${child}`, `ram:${DISK_MIB}`, `aio:${folder}/short.raw`];
      for (const image of images) others.push(await tapdisks.serve(image, { pid, options }));
      // From here on reads of it end early: the file lost its second half.
      Deno.truncateSync(`${folder}/short.raw`, DISK_BYTES / 2);
      for (let fill = 0; fill < FILLS; fill++) {
        await fillSlots(secret);
        for (const disk of others) {
          for (const how of ["simple", "structured"] as const) {
            const bytes = await allReplies(disk, how);
            assert.ok(bytes.length > MIB, `${disk.image} sent only ${bytes.length} bytes`);
            const at = Buffer.from(bytes.buffer).indexOf(MARK);
            assert.equal(at, -1, `${disk.image}, ${how}: bytes of another disk at ${at}`);
          }
        }
      }
      // The search finds the mark where it may be.
      const own = await allReplies(secret, "simple");
      assert.ok(Buffer.from(own.buffer).indexOf(MARK) >= 0);
    }),
});

Deno.test({
  name:
    `a disk that gets the number and the memory of one that was closed has none of its bytes${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const keeper = await tapdisks.serve(`ram:1`);
      const { pid } = keeper;
      const secret = await tapdisks.serve(`ram:${DISK_MIB}`, { pid });
      await fillSlots(secret);
      await tapdisks.stop(secret);
      const images = [`ram:${DISK_MIB}`, `vhd:${await createVhd(`${folder}/a.vhd`, DISK_MIB)}`];
      for (const image of images) {
        const next = await tapdisks.serve(image, { pid });
        for (const how of ["simple", "structured"] as const) {
          const bytes = await allReplies(next, how);
          assert.equal(Buffer.from(bytes.buffer).indexOf(MARK), -1, image);
        }
        await tapdisks.stop(next);
      }
    }),
});

Deno.test({
  name: `an export that is read-only takes no write of any kind${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = `${folder}/a.raw`;
      Deno.writeFileSync(path, marked(MIB));
      const before = Deno.statSync(path).mtime?.getTime();
      const disk = await tapdisks.serve(`aio:${path}`, { options: ["-R"] });
      const { client } = await NbdClient.open(disk.socket);
      using _ = client;
      const EPERM = 1;
      const payload = new Uint8Array(4096);
      for (const flags of [0, CmdFlag.Fua]) {
        const write = { command: Cmd.Write, offset: 0, payload, flags };
        assert.equal((await client.ask(write)).error, EPERM);
        for (const command of [Cmd.Trim, Cmd.WriteZeroes]) {
          assert.equal(
            (await client.ask({ command, offset: 0, length: 4096, flags })).error,
            EPERM,
          );
        }
      }
      assert.deepEqual(await client.read(0, 4096), marked(4096));
      assert.equal(Deno.statSync(path).mtime?.getTime(), before);
      assert.deepEqual(Deno.readFileSync(path), marked(MIB));
    }),
});
