/**
 * Connections that another process makes and hands over: to a tapdisk that serves the disk on them,
 * and to one that uses the disk. In between are the sockets of this test, as xapi's are.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFile, O_RDONLY, openFile } from "../../ffi/files.ts";
import { socketPair, unixConnect } from "../../ffi/sockets.ts";
import { ControlBench, isRunning, until, withControlBench } from "../support/control.ts";
import { handOver, tcpPair } from "../support/hand_over.ts";
import { Cmd, infoContent, NbdClient, noise, Opt } from "../support/nbd_client.ts";
import { openDescriptors } from "../support/served.ts";
import { needs, runOk } from "../support/tools.ts";

const MIB = 1 << 20;

/** Serves an image as minor `minor` of a tapdisk. */
async function serve(
  bench: ControlBench,
  image: string,
  { pid, minor = 0 }: { pid?: number; minor?: number } = {},
): Promise<{ pid: number; address: string }> {
  const server = pid ?? await bench.spawn();
  const address = `-p ${server} -m ${minor}`;
  await bench.ok("allocate");
  await bench.ok(`attach ${address}`);
  await bench.ok(`open ${address} -a ${image}`);
  return { pid: server, address };
}

/** A connected pair: this test speaks on one end, and hands the other end over at `path`. */
async function handedClient(bench: ControlBench, path: string, text: string): Promise<NbdClient> {
  const meeting = `${bench.folder}/meeting`;
  const listener = Deno.listen({ transport: "unix", path: meeting });
  const fd = unixConnect(meeting);
  const connection = await listener.accept();
  listener.close();
  handOver(path, text, fd);
  return NbdClient.on(connection);
}

Deno.test("handed over: a tapdisk serves its disk, in the oldstyle and in the newstyle", () =>
  withControlBench(async (bench) => {
    const { pid, address } = await serve(bench, `aio:${bench.rawImage("a.raw", 4 * MIB)}`);
    assert.deepEqual(bench.sockets(), bench.socketsOf(pid, 0));
    for (const name of bench.sockets()) {
      assert.equal((Deno.lstatSync(`${bench.control}/${name}`).mode ?? 0) & 0o777, 0o600, name);
    }
    const data = noise(65536, 1);
    const old = await handedClient(bench, `${bench.control}/nbdserver${pid}.0`, "dp");
    assert.deepEqual(await old.oldstyle(), { sizeBytes: 4 * MIB, flags: 0x16d });
    await old.write(4096, data);
    await old.request({ command: Cmd.Disc });
    assert.equal((await old.oldstyle()).sizeBytes, 4 * MIB, "it is greeted again");
    const modern = await handedClient(bench, `${bench.control}/nbdserver-new${pid}.0`, "dp");
    await modern.greet();
    await modern.acknowledged(Opt.Go, infoContent("any"));
    assert.deepEqual(await modern.read(4096, data.length), data);
    // A pause holds requests back, and descriptors are taken meanwhile.
    await bench.ok(`pause ${address}`);
    const late = await handedClient(bench, `${bench.control}/nbdserver${pid}.0`, "late");
    await late.oldstyle();
    await late.request({ command: Cmd.Read, offset: 4096, length: 512 });
    await bench.ok(`unpause ${address}`);
    assert.deepEqual((await late.reply()).data, data.slice(0, 512));
    await bench.ok(`close ${address}`);
    for (const client of [old, modern, late]) {
      await client.drain();
      client.close();
    }
    await until(
      "the sockets of the disk are gone",
      () => bench.sockets().join() === bench.socketsOf(pid).join(),
    );
    await bench.ok(`detach ${address}`);
    await until("the tapdisk has ended", () => !isRunning(pid));
    assert.deepEqual(bench.sockets(), []);
  }));

Deno.test("handed over: a tapdisk uses the disk of another, closes and opens it again", () =>
  withControlBench(async (bench) => {
    const far = await serve(bench, `aio:${bench.rawImage("far.raw", 4 * MIB)}`);
    const pid = await bench.spawn();
    const client = `${bench.control}/nbdclient${pid}`;
    const address = `-p ${pid} -m 1`;
    await bench.ok("allocate");
    await bench.ok(`attach ${address}`);
    const missing = await bench.tapCtl(`open ${address} -a nbd:mirror/1`);
    assert.equal(missing.code, 2);
    assert.match(missing.stderr, /nbd:mirror\/1 \(no descriptor of that name was handed over/);
    const pairs: [string, () => [number, number]][] = [
      ["nbdserver", tcpPair],
      ["nbdserver-new", socketPair],
    ];
    for (const [style, pair] of pairs) {
      const [ours, theirs] = pair();
      handOver(`${bench.control}/${style}${far.pid}.0`, "mirror/1", theirs);
      handOver(client, "mirror/1", ours);
      for (let round = 0; round < 3; round++) {
        await bench.ok(`open ${address} -a nbd:mirror/1`);
        const { client: guest, info } = await NbdClient.open(`${bench.control}/nbd${pid}.1`);
        assert.equal(info.sizeBytes, 4 * MIB);
        const data = noise(MIB, round + style.length);
        await guest.write(round * MIB, data);
        await guest.flush();
        await bench.ok(`pause ${address}`);
        await bench.ok(`unpause ${address}`);
        assert.deepEqual(await guest.read(round * MIB, MIB), data);
        guest.close();
        await bench.ok(`close ${address}`);
        const image = Deno.readFileSync(`${bench.folder}/far.raw`);
        assert.deepEqual(image.subarray(round * MIB, (round + 1) * MIB), data);
      }
    }
    assert.doesNotMatch(bench.log(), /lost the connection|Refused/);
  }));

Deno.test("handed over: after its server died, a new descriptor of the same name is used", () =>
  withControlBench(async (bench) => {
    const image = `aio:${bench.rawImage("far.raw", 4 * MIB)}`;
    const first = await serve(bench, image);
    const pid = await bench.spawn();
    const connect = (server: number): void => {
      const [ours, theirs] = tcpPair();
      handOver(`${bench.control}/nbdserver${server}.${server === first.pid ? 0 : 2}`, "x", theirs);
      handOver(`${bench.control}/nbdclient${pid}`, "x", ours);
    };
    connect(first.pid);
    await serve(bench, "nbd:x", { pid, minor: 1 });
    const { client: guest } = await NbdClient.open(`${bench.control}/nbd${pid}.1`);
    await guest.write(0, noise(4096, 1));
    Deno.kill(first.pid, "SIGKILL");
    await until("the server is gone", () => !isRunning(first.pid));
    await guest.request({ command: Cmd.Write, offset: 0, payload: noise(4096, 2) });
    const second = await serve(bench, image, { minor: 2 });
    connect(second.pid);
    assert.equal((await guest.reply()).error, 0);
    assert.deepEqual(await guest.read(0, 4096), noise(4096, 2));
    assert.match(
      bench.log(),
      /nbd:x: lost the connection[^\n]*\n(?:.*\n)*.*nbd:x: connected again/,
    );
    guest.close();
  }));

Deno.test("handed over: hostile descriptors are refused, logged, and not kept", () =>
  withControlBench(async (bench) => {
    const { pid } = await serve(bench, `aio:${bench.rawImage("a.raw", 4 * MIB)}`);
    const paths = ["nbdclient", "nbdserver", "nbdserver-new"].map((stem) =>
      `${bench.control}/${stem}${pid}${stem === "nbdclient" ? "" : ".0"}`
    );
    const before = openDescriptors(pid);
    const [ours, theirs] = socketPair();
    for (const path of paths) {
      handOver(path, "none");
      for (const kind of ["/dev/zero", `${bench.folder}/a.raw`, "/proc/self/mem"]) {
        handOver(path, kind, openFile(kind, O_RDONLY));
      }
    }
    handOver(paths[0], "many", ours, theirs);
    await until(
      "all is refused",
      () => (bench.log().match(/Refused a descriptor/g) ?? []).length > 5,
    );
    const client = await NbdClient.open(`${bench.control}/nbd${pid}.0`);
    client.client.close();
    await until("all descriptors are closed", () => openDescriptors(pid) <= before);
  }));

/** The longest path of a socket, bytes. */
const LONGEST_PATH = 107;

Deno.test("handed over: a control folder with room for the main sockets only is used all the same", () =>
  withControlBench(async ({ folder }) => {
    const deepest = `${folder}/`.padEnd(LONGEST_PATH - "/control/nbd4194304.0".length, "d");
    Deno.mkdirSync(deepest);
    const bench = new ControlBench(deepest);
    try {
      const { pid } = await serve(bench, `aio:${bench.rawImage("a.raw", 4 * MIB)}`);
      const { client, info } = await NbdClient.open(`${bench.control}/nbd${pid}.0`);
      assert.equal(info.sizeBytes, 4 * MIB);
      client.close();
      const missing = bench.socketsOf(pid, 0).filter((name) => !bench.sockets().includes(name));
      assert.ok(missing.includes(`nbdserver-new${pid}.0`), missing.join());
      for (const name of missing) {
        assert.match(bench.log(), new RegExp(`/${name}: .*107 are the most`));
      }
    } finally {
      await bench.end();
    }
  }));

const oldClients = needs("qemu-img", "nbdinfo");

Deno.test({
  name: `handed over: other programs connect to the oldstyle socket${oldClients.suffix}`,
  ignore: oldClients.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const { pid } = await serve(bench, `aio:${bench.rawImage("a.raw", 4 * MIB)}`);
      const uri = `nbd+unix:///?socket=${bench.control}/nbd-old${pid}.0`;
      const info = JSON.parse(await runOk("nbdinfo", ["--json", uri]));
      assert.equal(info.protocol, "oldstyle");
      assert.equal(info.exports[0]["export-size"], 4 * MIB);
      assert.match(await runOk("qemu-img", ["info", uri]), /virtual size: 4 MiB/);
      const { stdout } = await bench.tapCtl("list");
      assert.match(stdout, new RegExp(`pid=${pid} minor=0 state=0 args=aio:`));
      closeFile(unixConnect(`${bench.control}/nbd-old${pid}.0`));
    }),
});
