import assert from "node:assert/strict";
import { readMinorRecord } from "../../src/control/minors/minor_record.ts";
import { type ControlBench, isRunning, until, withControlBench } from "../support/control.ts";

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`tap-ctl devices: ${name}`, () => withControlBench(body));
}

/** Writes the file of a minor as a killed tapdisk leaves it. */
function leaveDevice(
  bench: ControlBench,
  minor: number,
  image: string,
  change: { readonly node?: string; readonly device?: string; readonly serve?: unknown[] } = {},
): void {
  const record = {
    node: "/dev/null",
    device: "ublk",
    queue: "auto",
    image,
    readOnly: false,
    direct: true,
    requestTimeoutSeconds: 0,
    encrypted: false,
    ...change,
  };
  Deno.writeTextFileSync(`${bench.control}/tapdisk/tapdisk-${minor}`, JSON.stringify(record));
}

/** The kinds of devices that the kernel lacks, by `tap-ctl check`. */
async function missingKinds(bench: ControlBench): Promise<[kind: string, why: string][]> {
  const { devices } = JSON.parse(await bench.ok("check --json"));
  return devices
    .filter(({ missing }: { missing: string | null }) => missing !== null)
    .map(({ kind, missing }: { kind: string; missing: string }) => [kind, missing]);
}

test("a kind that the kernel does not have is refused with the reason, and nothing stays", async (bench) => {
  const image = bench.rawImage("a.raw");
  for (const [kind, why] of await missingKinds(bench)) {
    const { code, stderr } = await bench.tapCtl(`create -a aio:${image} --device ${kind}`);
    assert.equal(code, 95, stderr);
    assert.ok(stderr.includes(`Cannot make a ${kind} device (${why})`), stderr);
    assert.deepEqual(await bench.list(), []);
  }
});

test("an unknown kind or queue is refused", async (bench) => {
  for (const option of ["--device floppy", "--queue posix"]) {
    const { code, stderr } = await bench.tapCtl(`create -a aio:/a ${option}`);
    assert.equal(code, 22);
    assert.match(stderr, /Allowed choices are/);
  }
});

test("a disk on io_uring is served like any other", async (bench) => {
  await bench.ok(`create -a aio:${bench.rawImage("a.raw")} --queue io_uring`);
  await bench.ok(`create -a aio:${bench.rawImage("b.raw")} --queue libaio`);
  const entries = JSON.parse(await bench.ok("list --json"));
  assert.deepEqual(entries.map(({ device }: { device: unknown }) => device), [null, null]);
  for (const { pid, minor } of entries) {
    const descriptors = Array.from(Deno.readDirSync(`/proc/${pid}/fd`), ({ name }) => {
      try {
        return Deno.readLinkSync(`/proc/${pid}/fd/${name}`);
      } catch {
        return "";
      }
    });
    assert.equal(descriptors.some((path) => path.includes("io_uring")), minor === 0);
    await bench.ok(`destroy -p ${pid} -m ${minor}`);
  }
});

test("a minor whose tapdisk died and left a device is not lost", async (bench) => {
  const image = `aio:${bench.rawImage("a.raw")}`;
  const other = `aio:${bench.rawImage("b.raw")}`;
  await bench.ok("allocate");
  leaveDevice(bench, 0, image);

  const [entry] = JSON.parse(await bench.ok("list --json"));
  assert.equal(entry.device, "/dev/null");
  assert.equal((await bench.list()).join(), "minor=0");

  const freed = await bench.tapCtl("free -m 0");
  assert.equal(freed.code, 16);
  assert.match(freed.stderr, /left \/dev\/null; 'tap-ctl recover -m 0'/);

  const pid = await bench.spawn();
  await bench.ok(`attach -p ${pid} -m 0`);
  for (const args of [`-a ${other} --device ublk`, `-a ${image}`]) {
    const opened = await bench.tapCtl(`open -p ${pid} -m 0 ${args}`);
    assert.equal(opened.code, 16);
    assert.match(opened.stderr, /\/dev\/null was left there with aio:.*'tap-ctl recover -m 0'/);
  }
  const busy = await bench.tapCtl("recover -m 0");
  assert.equal(busy.code, 16);
  assert.match(busy.stderr, /another tapdisk has/);
});

test("a guest's ring that a killed tapdisk left is found by recover, and ended by destroy", async (bench) => {
  const image = `aio:${bench.rawImage("a.raw")}`;
  const journal = `${bench.control}/ring-7-51712`;
  for (const command of ["recover", "recover -m 0"]) {
    await bench.ok("allocate");
    Deno.writeTextFileSync(journal, "");
    leaveDevice(bench, 0, image, { node: journal, device: "none" });
    assert.equal(JSON.parse(await bench.ok("list --json"))[0].device, null);
    assert.match((await bench.tapCtl("free -m 0")).stderr, /left .*ring-7-51712; 'tap-ctl recover/);
    assert.equal((await bench.ok(command)).trim(), `${bench.control}/tapdisk/tapdisk-0`);
    const [{ pid, minor, args }] = JSON.parse(await bench.ok("list --json"));
    assert.deepEqual([minor, args], [0, image]);
    await bench.ok(`destroy -p ${pid} -m 0`);
  }

  await bench.ok("allocate");
  leaveDevice(bench, 0, image, { node: journal, device: "none" });
  const pid = await bench.spawn();
  await bench.ok(`attach -p ${pid} -m 0`);
  const opened = await bench.tapCtl(`open -p ${pid} -m 0 -a aio:${bench.rawImage("b.raw")}`);
  assert.equal(opened.code, 16);
  assert.match(opened.stderr, /ring-7-51712 was.*'tap-ctl recover -m 0'/);
  await bench.ok(`open -p ${pid} -m 0 -a ${image}`);
  await bench.ok(`destroy -p ${pid} -m 0`);

  await bench.ok("allocate");
  leaveDevice(bench, 0, image, { node: journal, device: "none" });
  // A tapdisk that is dead.
  await bench.ok(`destroy -p ${pid} -m 0`);
  assert.deepEqual(await bench.list(), []);
});

test("a disk that is taken over is served over TCP as before, or else without that", async (bench) => {
  const image = `aio:${bench.rawImage("a.raw")}`;
  const journal = `${bench.control}/ring-7-51712`;
  await bench.ok(`create -a ${image} --listen 127.0.0.1:0 --export-name disk --max-clients 3`);
  Deno.writeTextFileSync(journal, "");
  const [{ pid, exports: before }] = JSON.parse(await bench.ok("list --json"));
  const port = Number(before[0].listen.split(":")[1]);
  Deno.kill(pid, "SIGKILL");
  await until("it is dead", () => !isRunning(pid));
  const tls = { mode: "off", certificates: null, psk: null, verifyPeer: false };
  const limits = { maxClients: 3, maxClientsPerAddress: 3 };
  const serve = [{ addresses: ["127.0.0.1"], port, name: "disk", tls, ...limits }];
  leaveDevice(bench, 0, image, { node: journal, device: "none", serve });
  await bench.ok("recover");
  const [taken] = JSON.parse(await bench.ok("list --json"));
  assert.deepEqual(taken.exports, before);
  // Another has the port meanwhile: the disk matters more.
  Deno.kill(taken.pid, "SIGKILL");
  let listener: Deno.Listener | undefined;
  await until("its port is free", () => {
    try {
      listener = Deno.listen({ hostname: "127.0.0.1", port });
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
    return listener !== undefined;
  });
  leaveDevice(bench, 0, image, { node: journal, device: "none", serve });
  const { code, stderr } = await bench.tapCtl("recover -m 0");
  listener?.close();
  assert.equal(code, 0);
  assert.match(stderr, /^tap-ctl recover: minor 0: .*Cannot listen on 127\.0\.0\.1.*EADDRINUSE/);
  const [again] = JSON.parse(await bench.ok("list --json"));
  assert.deepEqual([again.args, again.exports], [image, []]);
  await bench.ok(`destroy -p ${again.pid} -m 0`);
});

test("where no device is left, recover says so", async (bench) => {
  assert.equal(await bench.ok("recover"), "");
  await bench.ok("allocate");
  const { code, stderr } = await bench.tapCtl("recover -m 0");
  assert.equal(code, 19);
  assert.match(stderr, /no tapdisk that died left a block device or a ring there/);
});

test("a file of a minor that holds something else, or a device that is gone, counts as empty", async (bench) => {
  await bench.ok("allocate");
  const path = `${bench.control}/tapdisk/tapdisk-0`;
  const before = Deno.env.get("BLKTAP_CONTROL_DIR");
  Deno.env.set("BLKTAP_CONTROL_DIR", bench.control);
  try {
    for (const text of ["", "\0\0", "null", "{}", '{"node": "/dev/nbd0", "image": 3}']) {
      Deno.writeTextFileSync(path, text);
      assert.equal(readMinorRecord(0), null, text);
    }
  } finally {
    if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
    else Deno.env.set("BLKTAP_CONTROL_DIR", before);
  }
  leaveDevice(bench, 0, "aio:/a", { node: "/dev/gone" });
  await bench.ok("free -m 0");
});
