/**
 * NBD over TCP and TLS: clients of others at our ports, and our driver at servers of others.
 *
 * @module
 */
import assert from "node:assert/strict";
import { fio } from "../support/fio.ts";
import { makePki, PSK_TEXT } from "../support/pki.ts";
import {
  createVhd,
  type Disk,
  needsServed,
  settledDescriptors,
  type Tapdisks,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { findTool, run, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 32;
const TOOLS = ["openssl", "nbdkit", "nbdinfo", "nbdcopy", "qemu-img", "fio"];
const { ignore, suffix } = needsServed(...TOOLS);

/** What a test has. */
interface World {
  readonly tapdisks: Tapdisks;
  readonly folder: string;
  /** Certificates, and a file of keys. */
  readonly pki: string;
  readonly psk: string;
  /** Started processes, which are killed at the end. */
  readonly peers: Deno.ChildProcess[];
}

function tlsTest(
  name: string,
  body: (world: World) => Promise<void>,
  { needed = "" }: { needed?: string } = {},
): void {
  Deno.test({
    name: `NBD over TCP: ${name}${suffix}${needed === "" ? "" : ` (skipped: needs ${needed})`}`,
    ignore: ignore || needed !== "",
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const pki = await makePki(`${folder}/pki`);
        const psk = `${folder}/keys.psk`;
        Deno.writeTextFileSync(psk, PSK_TEXT);
        const peers: Deno.ChildProcess[] = [];
        try {
          await body({ tapdisks, folder, pki, psk, peers });
        } finally {
          for (const peer of peers) await end(peer);
        }
      }),
  });
}

/** Kills a process, which may have ended. */
async function end(peer: Deno.ChildProcess): Promise<void> {
  try {
    peer.kill("SIGKILL");
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
  }
  await peer.status;
}

function serveArgs({ pid, minor }: Disk): string[] {
  return ["-p", `${pid}`, "-m", `${minor}`];
}

/** Serves a disk on a port that the kernel chooses; returns the port. */
async function listen(tapdisks: Tapdisks, disk: Disk, ...options: string[]): Promise<number> {
  const where = await tapdisks.tapCtlOk(
    ...["serve", ...serveArgs(disk), "--listen", "127.0.0.1:0", ...options],
  );
  assert.match(where, /^127\.0\.0\.1:\d+$/);
  return Number(where.split(":")[1]);
}

interface Exported {
  readonly listen: string;
  readonly name: string;
  readonly clients: number;
  readonly turned_away: number;
}

async function exportsOf(tapdisks: Tapdisks, disk: Disk): Promise<Exported[]> {
  const stats: { exports: Exported[] } = JSON.parse(
    await tapdisks.tapCtlOk("stats", ...serveArgs(disk)),
  );
  return stats.exports;
}

async function madeDisk(tapdisks: Tapdisks, folder: string, name = "a"): Promise<Disk> {
  return await tapdisks.serve(`vhd:${await createVhd(`${folder}/${name}.vhd`, DISK_MIB)}`);
}

/** A file of random bytes with holes, as large as a disk. */
function contentFile(path: string): string {
  const bytes = new Uint8Array(DISK_MIB * MIB);
  for (let at = 0; at < bytes.length; at += 4 * MIB) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
    crypto.getRandomValues(bytes.subarray(at + MIB, at + MIB + 65536));
  }
  Deno.writeFileSync(path, bytes);
  return path;
}

async function assertSameFiles(a: string, b: string): Promise<void> {
  assert.equal((await run("cmp", [a, b])).code, 0, `${a} and ${b} differ`);
}

/** Runs nbdinfo, which must fail; returns what it says. */
async function refused(uri: string): Promise<string> {
  const { code, stderr } = await run("nbdinfo", ["--size", uri], { timeoutMs: 60_000 });
  assert.notEqual(code, 0, `${uri} was opened`);
  return stderr;
}

async function size(uri: string): Promise<number> {
  return Number(await runOk("nbdinfo", ["--size", uri], { timeoutMs: 60_000 }));
}

tlsTest("nbdcopy, qemu-img and nbdinfo by certificates", async ({ tapdisks, folder, pki }) => {
  const disk = await madeDisk(tapdisks, folder);
  const port = await listen(tapdisks, disk, "--export-name", "ä b", "--tls-certificates", pki);
  const uri = `nbds://localhost:${port}/${encodeURIComponent("ä b")}?tls-certificates=${pki}`;
  const content = contentFile(`${folder}/content`);
  await runOk("nbdcopy", ["--connections=4", content, uri]);
  await runOk("nbdcopy", [uri, `${folder}/copy`]);
  await assertSameFiles(content, `${folder}/copy`);
  const creds = `tls-creds-x509,id=t,dir=${pki},endpoint=client`;
  const image = `driver=nbd,host=localhost,port=${port},export=ä b,tls-creds=t`;
  const convert = ["convert", "-O", "raw", "--object", creds, "--image-opts", image];
  await runOk("qemu-img", [...convert, `${folder}/converted`]);
  await assertSameFiles(content, `${folder}/converted`);
  assert.match(await runOk("nbdinfo", [uri]), /newstyle-fixed with TLS, using structured/);
  await waitForClients(tapdisks, disk, 0);
});

async function waitForClients(tapdisks: Tapdisks, disk: Disk, count: number): Promise<void> {
  for (let i = 0; i < 1200; i++) {
    if ((await exportsOf(tapdisks, disk))[0].clients === count) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  assert.equal((await exportsOf(tapdisks, disk))[0].clients, count);
}

tlsTest("fio verifies through TLS at both ends", async ({ tapdisks, folder, pki }) => {
  const disk = await madeDisk(tapdisks, folder);
  const port = await listen(tapdisks, disk, "--tls-certificates", pki, "--tls-verify-peer");
  const remote = `//localhost:${port}/?tls-certificates=${pki}`;
  const near = await tapdisks.serve(`nbds:${remote}`);
  const job = ["rw=randrw", "bsrange=512-256k", "iodepth=32", `size=${DISK_MIB}M`];
  const verify = ["verify=crc32c", "verify_backlog=500", "verify_fatal=1", "randrepeat=0"];
  const [done] = await fio(near.uri, [...job, "io_size=96M", "bsrange=512-256k", ...verify]);
  assert.equal(done.error, 0);
  // Many requests call for several connections.
  assert.ok((await exportsOf(tapdisks, disk))[0].clients > 1, "one connection only");
  await tapdisks.stop(near);
  await waitForClients(tapdisks, disk, 0);
});

/** What this machine lacks of IPv6; empty when it has it. */
function missingIpv6(): string {
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
    return "";
  } catch {
    return "IPv6";
  }
}

tlsTest("peers over IPv6, and over both", async ({ tapdisks, folder, pki }) => {
  const disk = await madeDisk(tapdisks, folder);
  const serve = (at: string, folder = pki): Promise<string> =>
    tapdisks.tapCtlOk(
      ...["serve", ...serveArgs(disk), "--listen", at, "--tls-certificates", folder],
    );
  const query = `/?tls-certificates=${pki}`;
  const alone = /^\[::1\]:(\d+)$/.exec((await serve("[::1]:0")).trim())?.[1];
  assert.equal(await size(`nbds://[::1]:${alone}${query}`), DISK_MIB * MIB);
  await refused(`nbds://127.0.0.1:${alone}${query}`);
  // All addresses of both families, on one socket.
  const both = /^\*:(\d+)$/.exec((await serve(":0")).trim())?.[1];
  for (const host of ["[::1]", "127.0.0.1", "localhost"]) {
    assert.equal(await size(`nbds://${host}:${both}${query}`), DISK_MIB * MIB, host);
    // The driver compares the certificate with the address.
    const near = await tapdisks.serve(`nbds://${host}:${both}${query}`);
    assert.equal(await size(near.uri), DISK_MIB * MIB, host);
    await tapdisks.stop(near);
  }
  const other = await makePki(`${folder}/other`, { altNames: "DNS:localhost,IP:127.0.0.1" });
  const where = (await serve("[::1]:0", other)).trim();
  const named = `nbds://${where}/?tls-certificates=${other}`;
  await assert.rejects(() => tapdisks.serve(named), /address mismatch/);
}, { needed: missingIpv6() });

tlsTest("clients are verified", async ({ tapdisks, folder, pki }) => {
  const disk = await madeDisk(tapdisks, folder);
  const port = await listen(tapdisks, disk, "--tls-certificates", pki, "--tls-verify-peer");
  const uri = (certificates: string): string =>
    `nbds://localhost:${port}/?tls-certificates=${certificates}`;
  assert.equal(await size(uri(pki)), DISK_MIB * MIB);
  // The client of another authority, one that has expired, and one without a certificate.
  const stranger = await makePki(`${folder}/stranger`);
  Deno.copyFileSync(`${pki}/ca-cert.pem`, `${stranger}/ca-cert.pem`);
  await refused(uri(stranger));
  const bare = `${folder}/bare`;
  Deno.mkdirSync(bare);
  Deno.copyFileSync(`${pki}/ca-cert.pem`, `${bare}/ca-cert.pem`);
  await refused(uri(bare));
  const image = (folder: string): Promise<Disk> =>
    tapdisks.serve(`nbds://localhost:${port}/?tls-certificates=${folder}`);
  await assert.rejects(() => image(stranger), /TLS failed|ended the connection/);
  await assert.rejects(() => image(bare), /TLS failed|ended the connection/);
  assert.equal(await size(uri(pki)), DISK_MIB * MIB);
});

tlsTest("renewed certificates count from the next client on", async ({ tapdisks, folder, pki }) => {
  const other = await makePki(`${folder}/other`);
  const served = `${folder}/served`;
  Deno.mkdirSync(served);
  const install = (from: string, ...names: string[]): void => {
    for (const name of names) Deno.copyFileSync(`${from}/${name}.pem`, `${served}/${name}.pem`);
  };
  install(pki, "server-cert", "server-key");
  const disk = await madeDisk(tapdisks, folder);
  const port = await listen(tapdisks, disk, "--tls-certificates", served);
  const uri = (certificates: string): string =>
    `nbds://localhost:${port}/?tls-certificates=${certificates}`;
  assert.equal(await size(uri(pki)), DISK_MIB * MIB);
  // Half of them: the certificate does not go with the key.
  install(other, "server-cert");
  assert.equal(await size(uri(pki)), DISK_MIB * MIB);
  install(other, "server-key");
  assert.equal(await size(uri(other)), DISK_MIB * MIB);
  await refused(uri(pki));
});

tlsTest("keys instead of certificates", async ({ tapdisks, folder, pki, psk }) => {
  const disk = await madeDisk(tapdisks, folder);
  const port = await listen(tapdisks, disk, "--tls-psk", psk);
  const uri = (name: string, file: string): string =>
    `nbds://${name}@localhost:${port}/?tls-psk-file=${file}`;
  assert.equal(await size(uri("alice", psk)), DISK_MIB * MIB);
  assert.equal(await size(uri("bob", psk)), DISK_MIB * MIB);
  const wrong = `${folder}/wrong.psk`;
  Deno.writeTextFileSync(wrong, "alice:ff112233445566778899aabbccddeeff\ncarol:0011\n");
  await refused(uri("alice", wrong));
  await refused(uri("carol", wrong));
  await refused(`nbds://localhost:${port}/?tls-certificates=${pki}`);
  const near = await tapdisks.serve(
    `nbds://localhost:${port}/?tls-psk-file=${psk}&tls-username=bob`,
  );
  assert.equal(await size(near.uri), DISK_MIB * MIB);
  await tapdisks.stop(near);
  await assert.rejects(() => tapdisks.serve(uri("alice", wrong)), /TLS failed/);
  await assert.rejects(() => tapdisks.serve(uri("dave", psk)), /has no key for dave/);
  await assert.rejects(
    () => tapdisks.serve(`nbds://localhost:${port}/?tls-certificates=${pki}`),
    /TLS failed/,
  );
});

tlsTest("plain clients on a TLS port, and the reverse", async ({ tapdisks, folder, pki }) => {
  const disk = await madeDisk(tapdisks, folder);
  const [off, on, must] = [
    await listen(tapdisks, disk),
    await listen(tapdisks, disk, "--tls", "on", "--tls-certificates", pki),
    await listen(tapdisks, disk, "--tls", "require", "--tls-certificates", pki),
  ];
  const plain = (port: number): string => `nbd://localhost:${port}/`;
  const secure = (port: number): string => `nbds://localhost:${port}/?tls-certificates=${pki}`;
  for (const uri of [plain(off), plain(on), secure(on), secure(must)]) {
    assert.equal(await size(uri), DISK_MIB * MIB, uri);
  }
  await refused(plain(must));
  await refused(secure(off));
  assert.notEqual((await run("nbdinfo", ["--list", plain(must)])).code, 0);
  await assert.rejects(() => tapdisks.serve(`nbd:127.0.0.1:${must}`), /EACCES.*|wants TLS/);
  await assert.rejects(() => tapdisks.serve(`nbds:${secure(off).slice(5)}`), /has no TLS/);
});

/** A port that nobody listens on. */
function freePort(): number {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr as Deno.NetAddr;
  listener.close();
  return port;
}

/** Starts nbdkit on a port. */
async function nbdkit(world: World, port: number, ...args: string[]): Promise<Deno.ChildProcess> {
  const child = new Deno.Command(findTool("nbdkit") ?? "nbdkit", {
    args: ["--foreground", "-i", "127.0.0.1", "-p", `${port}`, ...args],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  world.peers.push(child);
  for (let i = 0;; i++) {
    try {
      (await Deno.connect({ hostname: "127.0.0.1", port })).close();
      return child;
    } catch (error) {
      if (i === 1200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }
}

function rawFile(path: string): string {
  Deno.writeFileSync(path, new Uint8Array(0));
  Deno.truncateSync(path, DISK_MIB * MIB);
  return path;
}

tlsTest("the driver verifies the server", async (world) => {
  const { tapdisks, folder, pki } = world;
  const file = rawFile(`${folder}/raw`);
  const other = await makePki(`${folder}/other`, { altNames: "DNS:elsewhere.example" });
  const expired = await makePki(`${folder}/expired`, { isExpired: true });
  const ports = [freePort(), freePort(), freePort()];
  const folders = [pki, other, expired];
  for (const [i, port] of ports.entries()) {
    await nbdkit(world, port, "--tls=require", `--tls-certificates=${folders[i]}`, "file", file);
  }
  const name = (port: number, certificates: string, more = ""): string =>
    `nbds://localhost:${port}/?tls-certificates=${certificates}${more}`;
  const opened = async (image: string): Promise<void> => {
    const disk = await tapdisks.serve(image);
    assert.equal(await size(disk.uri), DISK_MIB * MIB);
    await tapdisks.stop(disk);
  };
  await opened(name(ports[0], pki));
  await opened(name(ports[0], pki).replace("localhost", "127.0.0.1"));
  await assert.rejects(() => opened(name(ports[0], other)), /certificate verify failed/);
  await assert.rejects(() => opened(name(ports[1], other)), /hostname mismatch/);
  await opened(name(ports[1], other, "&tls-hostname=elsewhere.example"));
  await opened(name(ports[1], other, "&tls-verify-peer=false"));
  await assert.rejects(() => opened(name(ports[2], expired)), /certificate has expired/);
});

/** Waits until a disk has written. */
async function underLoad(tapdisks: Tapdisks, { pid, minor }: Disk): Promise<void> {
  for (let sectors = 0; sectors === 0;) {
    const stats = await tapdisks.tapCtlOk("stats", "-p", `${pid}`, "-m", `${minor}`);
    sectors = JSON.parse(stats).secs[1];
  }
}

tlsTest("the driver survives restarts of a TLS server, and goes to another", async (world) => {
  const { tapdisks, folder, pki } = world;
  const file = rawFile(`${folder}/raw`);
  const [first, second] = [freePort(), freePort()];
  const args = ["--tls=require", `--tls-certificates=${pki}`, "file", file];
  const one = await nbdkit(world, first, ...args);
  await nbdkit(world, second, ...args);
  const hosts = `127.0.0.1:${first},127.0.0.1:${second}`;
  const disk = await tapdisks.serve(`nbds://${hosts}/?tls-certificates=${pki}`);
  const verify = ["verify=crc32c", "verify_backlog=500", "verify_fatal=1", "randrepeat=0"];
  const job = ["rw=randrw", "bs=4k", "iodepth=16", `size=${DISK_MIB}M`, "io_size=32M", ...verify];
  const done = fio(disk.uri, [...job, "rate_iops=1500,1500"]);
  // The first ends under load. Its successor is another server.
  await underLoad(tapdisks, disk);
  await end(one);
  assert.equal((await done)[0].error, 0);
  const log = Deno.readTextFileSync(
    `${tapdisks.controlFolder}/log/${
      [...Deno.readDirSync(`${tapdisks.controlFolder}/log`)][0].name
    }`,
  );
  assert.match(log, /connected again, to another address/);
});

tlsTest("several connections, where the server allows them", async (world) => {
  const { tapdisks, folder } = world;
  const file = rawFile(`${folder}/raw`);
  for (const [filter, most] of [[[], 4], [["--filter=multi-conn", "multi-conn-mode=disable"], 1]]) {
    const options = filter as string[];
    const port = freePort();
    const filters = options.filter((word) => word.startsWith("--"));
    const settings = options.filter((word) => !word.startsWith("--"));
    await nbdkit(world, port, ...filters, "file", file, ...settings);
    const disk = await tapdisks.serve(`nbd:127.0.0.1:${port}`);
    const before = await settledDescriptors(disk.pid);
    const job = ["rw=randread", "bs=4k", "iodepth=64", `size=${DISK_MIB}M`, "io_size=64M"];
    assert.equal((await fio(disk.uri, job))[0].error, 0);
    const more = await settledDescriptors(disk.pid) - before;
    assert.ok(most === 1 ? more === 0 : more >= 1 && more < 4, `${more} more descriptors`);
    await tapdisks.stop(disk);
  }
});

tlsTest("disks share a port by name", async ({ tapdisks, folder }) => {
  const a = await madeDisk(tapdisks, folder, "a");
  const file = await createVhd(`${folder}/b.vhd`, 64);
  const b = await tapdisks.serve(`vhd:${file}`, { pid: a.pid });
  const port = freePort();
  const at = ["--listen", `localhost:${port}`];
  await tapdisks.tapCtlOk("serve", ...serveArgs(a), ...at, "--export-name", "a");
  assert.equal(await size(`nbd://localhost:${port}/`), DISK_MIB * MIB);
  await tapdisks.tapCtlOk("serve", ...serveArgs(b), ...at, "--export-name", "b");
  assert.equal(await size(`nbd://localhost:${port}/a`), DISK_MIB * MIB);
  assert.equal(await size(`nbd://localhost:${port}/b`), 64 * MIB);
  await refused(`nbd://localhost:${port}/c`);
  await refused(`nbd://localhost:${port}/`);
  const list = await runOk("nbdinfo", ["--list", `nbd://localhost:${port}/`]);
  assert.deepEqual(list.match(/export="[^"]*"/g), ['export="a"', 'export="b"']);
  const failed = async (...args: string[]): Promise<string> => {
    const { code, stderr } = await tapdisks.tapCtl(...args);
    assert.notEqual(code, 0, args.join(" "));
    return stderr;
  };
  assert.match(
    await failed("serve", ...serveArgs(b), ...at, "--export-name", "a"),
    /one of this name already/,
  );
  const keys = `${folder}/keys.psk`;
  assert.match(
    await failed("serve", ...serveArgs(b), ...at, "--export-name", "x", "--tls-psk", keys),
    /other TLS settings/,
  );
  const c = await tapdisks.serve(`vhd:${await createVhd(`${folder}/c.vhd`, 8)}`);
  assert.match(await failed("serve", ...serveArgs(c), ...at), /EADDRINUSE/);
  await tapdisks.tapCtlOk("unserve", ...serveArgs(a), ...at);
  assert.match(await failed("unserve", ...serveArgs(a)), /not served there/);
  assert.equal(await size(`nbd://localhost:${port}/`), 64 * MIB);
  await tapdisks.stop(b);
  await tapdisks.tapCtlOk("serve", ...serveArgs(c), ...at);
  assert.equal(await size(`nbd://localhost:${port}/`), 8 * MIB);
});

tlsTest("clients are limited, in all and by address", async ({ tapdisks, folder }) => {
  const disk = await madeDisk(tapdisks, folder);
  const limits = ["--max-clients", "3", "--max-clients-per-address", "2"];
  const port = await listen(tapdisks, disk, ...limits);
  const image = `nbd:127.0.0.1:${port}`;
  const one = await tapdisks.serve(image);
  const two = await tapdisks.serve(image);
  await waitForClients(tapdisks, disk, 2);
  await refused(`nbd://127.0.0.1:${port}/`);
  const [{ turned_away }] = await exportsOf(tapdisks, disk);
  assert.ok(turned_away > 0);
  await tapdisks.stop(one);
  await waitForClients(tapdisks, disk, 1);
  assert.equal(await size(`nbd://127.0.0.1:${port}/`), DISK_MIB * MIB);
  await tapdisks.stop(two);
});

tlsTest(
  "create and open serve a disk at once, or fail as a whole",
  async ({ tapdisks, folder }) => {
    const file = await createVhd(`${folder}/a.vhd`, DISK_MIB);
    const port = freePort();
    const listening = ["--listen", `127.0.0.1:${port}`, "--export-name", "a"];
    await tapdisks.tapCtlOk("create", "-a", `vhd:${file}`, ...listening);
    const [entry]: { pid: number; minor: number; exports: Exported[] }[] = JSON.parse(
      await tapdisks.tapCtlOk("list", "--json"),
    );
    assert.equal(entry.exports[0].listen, `127.0.0.1:${port}`);
    assert.equal(await size(`nbd://127.0.0.1:${port}/a`), DISK_MIB * MIB);
    const second = await createVhd(`${folder}/b.vhd`, 8);
    const { code, stderr } = await tapdisks.tapCtl("create", "-a", `vhd:${second}`, ...listening);
    assert.notEqual(code, 0);
    assert.match(stderr, /Cannot listen on 127\.0\.0\.1:\d+.*EADDRINUSE/);
    assert.equal(JSON.parse(await tapdisks.tapCtlOk("list", "--json")).length, 1);
    await tapdisks.tapCtlOk("destroy", "-p", `${entry.pid}`, "-m", `${entry.minor}`);
    await waitUntil(() => !pathExists(`/proc/${entry.pid}`), "the tapdisk ends");
  },
);

function pathExists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
