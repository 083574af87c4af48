import assert from "node:assert/strict";
import fc from "fast-check";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { Arena } from "../../ffi/memory.ts";
import { connectRequest, disconnectRequest, reconfigureRequest } from "../../ffi/nbd_netlink.ts";
import {
  AttributeWriter,
  encodeMessage,
  type GenericRequest,
  readAttributes,
  requestAside,
  requestNow,
} from "../../ffi/netlink.ts";
import { receiveAt, sendAt } from "../../ffi/sockets.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import { MOST_CLIENTS } from "../../src/frontend/nbd/client_memory.ts";
import type { ServedConnection } from "../../src/frontend/nbd/connection_host.ts";
import { indexOf, kernelAtLeast } from "../../src/frontend/nbd_device/kernel_facts.ts";
import { nbdDeviceMaker } from "../../src/frontend/nbd_device/nbd_device.ts";
import { SocketPairs } from "../../src/frontend/nbd_device/socket_pairs.ts";
import { RealDevice } from "../support/real_device.ts";
import { openDescriptors } from "../support/served.ts";

/** The message of a request to family 0x1c, as hexadecimal words. */
function words(request: GenericRequest): string[] {
  const view = new DataView(encodeMessage(0x1c, request).buffer);
  const all: string[] = [];
  for (let at = 0; at < view.byteLength; at += 4) {
    all.push(view.getUint32(at, true).toString(16).padStart(8, "0"));
  }
  return all;
}

Deno.test("nbd by netlink: the message that makes a device, word by word", () => {
  const request = connectRequest({
    sizeBytes: 0x2_0000_0200,
    blockSizeBytes: 512,
    serverFlags: 0x16d,
    timeoutSeconds: 0,
    deadConnectionSeconds: 600,
    sockets: [7, 9],
    backend: "tapdisk-3",
  });
  const header = ["00000088", "0005001c", "00000000", "00000000", "00000101"];
  assert.deepEqual(words(request), [
    ...header,
    ...["0002000c", "00000200", "00000002"],
    ...["0003000c", "00000200", "00000000"],
    ...["0004000c", "00000000", "00000000"],
    ...["0008000c", "00000258", "00000000"],
    ...["0005000c", "0000016d", "00000000"],
    ...["0006000c", "00000000", "00000000"],
    ...["8007001c", "8001000c", "00010008", "00000007", "8001000c", "00010008", "00000009"],
    ...["000a000e", "64706174", "2d6b7369", "00000033"],
  ]);
});

Deno.test("nbd by netlink: a device is changed and disconnected by its number", () => {
  const backend = "b";
  assert.deepEqual(words(disconnectRequest(5)).slice(4), ["00000102", "00010008", "00000005"]);
  assert.deepEqual(words(reconfigureRequest({ index: 5, backend, clientFlags: 2 })).slice(4), [
    ...["00000103", "00010008", "00000005", "0006000c", "00000002", "00000000"],
    ...["000a0006", "00000062"],
  ]);
  assert.deepEqual(words(reconfigureRequest({ index: 5, backend, sizeBytes: 512 })).slice(4), [
    ...["00000103", "00010008", "00000005", "0002000c", "00000200", "00000000"],
    ...["000a0006", "00000062"],
  ]);
});

Deno.test("netlink: what was written is read back, and cut-off bytes are no attributes", () => {
  const attributes = fc.uniqueArray(
    fc.record({ type: fc.integer({ min: 1, max: 0x3fff }), text: fc.string({ maxLength: 30 }) }),
    { selector: ({ type }) => type, maxLength: 8 },
  );
  fc.assert(
    fc.property(attributes, fc.nat(40), (list, cut) => {
      const writer = new AttributeWriter();
      for (const { type, text } of list) writer.text(type, text);
      const bytes = writer.done();
      const read = readAttributes(bytes);
      const texts = Array.from(read, ([type, view]) => {
        const content = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
        return { type, text: new TextDecoder().decode(content.slice(0, -1)) };
      });
      assert.deepEqual(
        texts,
        list.map(({ type, text }) => ({
          type,
          text: new TextDecoder().decode(new TextEncoder().encode(text)),
        })),
      );
      const short = readAttributes(bytes.slice(0, Math.max(0, bytes.length - cut)));
      assert.ok(short.size <= read.size);
      for (const [type, view] of short) assert.equal(view.byteLength, read.get(type)?.byteLength);
    }),
  );
});

Deno.test("netlink: the kernel knows its own families, and says so when it does not", async () => {
  const before = openDescriptors(Deno.pid);
  const ask = (family: string, name: string): GenericRequest => ({
    family,
    version: 2,
    command: 3,
    attributes: new AttributeWriter().text(2, name),
  });
  const answer = requestNow(ask("nlctrl", "nlctrl"));
  assert.equal(answer.errno, 0);
  assert.equal(answer.attributes.get(1)?.getUint16(0, true), 16);
  const same = await requestAside(ask("nlctrl", "nlctrl"));
  assert.equal(same.attributes.get(1)?.getUint16(0, true), 16);
  const unknown = await requestAside(ask("nlctrl", "no such family"));
  assert.deepEqual([unknown.errno, unknown.known], [Errno.ENOENT, true]);
  const nobody = requestNow(ask("no such family", ""));
  assert.deepEqual([nobody.errno, nobody.known], [Errno.ENOENT, false]);
  assert.equal(openDescriptors(Deno.pid), before);
});

Deno.test("nbd device: nodes, kernel releases, and a reason where there is none", () => {
  assert.equal(indexOf("/dev/nbd0"), 0);
  assert.equal(indexOf("/dev/nbd117"), 117);
  for (const node of ["/dev/nbd", "/dev/nbd1p1", "nbd1", "/dev/nbdx", ""]) {
    assert.equal(indexOf(node), null, node);
  }
  const [major, minor] = Deno.osRelease().split(".").map(Number);
  assert.ok(kernelAtLeast(major, minor) && kernelAtLeast(major - 1, 999) && kernelAtLeast(2, 6));
  assert.ok(!kernelAtLeast(major, minor + 1) && !kernelAtLeast(major + 1, 0));
  const isLoaded = /^ *43 nbd$/m.test(Deno.readTextFileSync("/proc/devices"));
  const missing = nbdDeviceMaker.missing();
  if (!isLoaded) assert.match(missing ?? "", /modprobe nbd/);
  else assert.ok(missing === null || /CAP_SYS_ADMIN/.test(missing));
});

/** A request of the transmission phase. */
function request(command: number, cookie: number, sector: number, bytes: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(28));
  view.setUint32(0, 0x25609513);
  view.setUint16(6, command);
  view.setUint32(12, cookie);
  view.setUint32(20, sector * 512);
  view.setUint32(24, bytes);
  return new Uint8Array(view.buffer);
}

/** The kernel's side of a connection. */
class KernelEnd {
  readonly #arena = new Arena(1 << 20);

  constructor(readonly fd: number) {}

  send(...parts: Uint8Array[]): void {
    let length = 0;
    for (const part of parts) {
      this.#arena.bytes.set(part, length);
      length += part.length;
    }
    assert.equal(sendAt(this.fd, this.#arena.address, length), length);
  }

  receive(): Uint8Array | number {
    const got = receiveAt(this.fd, this.#arena.address, 1 << 20);
    return got < 0 ? got : this.#arena.bytes.slice(0, got);
  }

  close(): void {
    closeFile(this.fd);
    this.#arena.release();
  }
}

async function runFor(device: RealDevice, ms: number): Promise<void> {
  device.scheduler.addTimer(ms, () => device.scheduler.stop());
  await device.scheduler.run();
}

Deno.test("nbd device: a socket pair is served without a handshake, until the kernel goes", async () => {
  const before = openDescriptors(Deno.pid);
  const device = new RealDevice("ram:4096");
  const gone: boolean[] = [];
  let retired = 0;
  const connections = new NbdConnections(device.scheduler, device.vbd, {
    owner: {
      connectionGone: (connection: ServedConnection) => void gone.push(connection.hasLeft),
      connectionRetired: () => void retired++,
    },
  });
  const pairs = new SocketPairs(device.vbd.requests, 2);
  const ends = pairs.kernelEnds.splice(0).map((fd) => new KernelEnd(fd));
  assert.equal(pairs.isRefused, false);
  // Earlier requests are answered too.
  const data = new Uint8Array(1024).fill(0x5a);
  ends[0].send(request(1, 1, 8, 1024), data);
  pairs.serve(connections);
  await runFor(device, 30);
  assert.deepEqual(
    ends[0].receive(),
    new Uint8Array([0x67, 0x44, 0x66, 0x98, ...words32(0, 0, 1)]),
  );
  ends[1].send(request(0, 2, 7, 2048));
  await runFor(device, 30);
  const answer = ends[1].receive();
  assert.ok(typeof answer !== "number");
  assert.deepEqual(answer.subarray(16 + 512, 16 + 1536), data);
  assert.equal(connections.size, 2);
  // One connection disconnects, the other breaks.
  ends[0].send(request(2, 3, 0, 0));
  ends[1].close();
  await runFor(device, 30);
  assert.deepEqual(gone.toSorted(), [false, true]);
  assert.equal(retired, 2);
  ends[0].close();
  connections.close();
  await device.close();
  device.vbd.destroy();
  assert.equal(openDescriptors(Deno.pid), before);
});

Deno.test("nbd: the object of the client that left last stays, and with it what the runtime learnt", () => {
  const program = new URL("../support/clients_that_leave.ts", import.meta.url).pathname;
  const { stdout, stderr } = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", "--v8-flags=--expose-gc", program],
  }).outputSync();
  const decoder = new TextDecoder();
  assert.equal(decoder.decode(stdout).trim(), "[false,false,true]", decoder.decode(stderr));
});

function words32(...numbers: number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(4 * numbers.length));
  numbers.forEach((number, i) => view.setUint32(4 * i, number));
  return new Uint8Array(view.buffer);
}

Deno.test("nbd device: an end that the kernel drops is noticed, and nothing is left over", async () => {
  const before = openDescriptors(Deno.pid);
  const device = new RealDevice("ram:4096");
  const pairs = new SocketPairs(device.vbd.requests, 1);
  pairs.closeKernelEnds();
  assert.equal(pairs.isRefused, true);
  pairs.discard();
  // The memory of all clients is available again, and no more than that.
  const all = new SocketPairs(device.vbd.requests, MOST_CLIENTS);
  assert.throws(() => new SocketPairs(device.vbd.requests, 1), { code: "EUSERS" });
  all.discard();
  new SocketPairs(device.vbd.requests, MOST_CLIENTS).discard();
  await device.close();
  device.vbd.destroy();
  assert.equal(openDescriptors(Deno.pid), before);
});

Deno.test("the loop calls back soon after a promise of the runtime is settled", async () => {
  const device = new RealDevice("ram:4096");
  const { scheduler } = device;
  const startMs = performance.now();
  let tookMs = Infinity;
  scheduler.settle(new Promise<number>((resolve) => setTimeout(() => resolve(7), 20)), (value) => {
    assert.equal(value, 7);
    tookMs = performance.now() - startMs;
    scheduler.stop();
  });
  await scheduler.run();
  assert.ok(tookMs >= 19 && tookMs < 10_000, `it took ${tookMs} ms`);
  await device.close();
  device.vbd.destroy();
});
