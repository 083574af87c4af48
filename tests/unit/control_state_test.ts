import assert from "node:assert/strict";
import { closeFile } from "../../ffi/files.ts";
import {
  allocateMinor,
  freeMinor,
  holdMinor,
  listMinors,
} from "../../src/control/minors/minors.ts";
import {
  controlFolder,
  controlSocketPath,
  minorPath,
  nbdClientSocketPath,
  nbdSocketPath,
  nbdSockets,
} from "../../src/control/paths.ts";
import { ownerOfSocket, removeStaleSockets } from "../../src/control/client/stale_sockets.ts";
import { until } from "../support/control.ts";
import { formatStatistics } from "../../src/control/protocol/statistics.ts";

/** Calls `body` with a new control folder, which does not exist yet. */
function withControlFolder(body: (folder: string) => void): void {
  const parent = Deno.makeTempDirSync({ prefix: "blktap-test-" });
  const before = Deno.env.get("BLKTAP_CONTROL_DIR");
  Deno.env.set("BLKTAP_CONTROL_DIR", `${parent}/control`);
  try {
    body(`${parent}/control`);
  } finally {
    if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
    else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    Deno.removeSync(parent, { recursive: true });
  }
}

Deno.test("state: everything lies in the control folder", () => {
  withControlFolder((folder) => {
    assert.equal(controlSocketPath(12), `${folder}/ctl12`);
    assert.equal(nbdSocketPath(12, 3), `${folder}/nbd12.3`);
    assert.equal(nbdClientSocketPath(12), `${folder}/nbdclient12`);
    assert.deepEqual(nbdSockets(12, 3), {
      newstyle: `${folder}/nbd12.3`,
      oldstyle: `${folder}/nbd-old12.3`,
      handoverNewstyle: `${folder}/nbdserver-new12.3`,
      handoverOldstyle: `${folder}/nbdserver12.3`,
    });
    assert.equal(minorPath(3), `${folder}/tapdisk/tapdisk-3`);
    Deno.env.set("BLKTAP_CONTROL_DIR", "some/where/");
    assert.equal(controlFolder(), `${Deno.cwd()}/some/where`);
    Deno.env.set("BLKTAP_CONTROL_DIR", "");
    assert.equal(controlFolder(), "/run/blktap-control");
  });
});

Deno.test("state: minors are the lowest free ones, in folders for their owner only", () => {
  withControlFolder((folder) => {
    assert.deepEqual(listMinors(), []);
    assert.deepEqual([allocateMinor(), allocateMinor(), allocateMinor()], [0, 1, 2]);
    for (const path of [folder, `${folder}/tapdisk`]) {
      assert.equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o700, path);
    }
    freeMinor(1);
    Deno.writeTextFileSync(`${folder}/tapdisk/README`, "not a minor");
    assert.deepEqual(listMinors(), [0, 2]);
    assert.equal(allocateMinor(), 1);
    assert.throws(() => freeMinor(9), { code: "ENOENT", message: /tapdisk-9/ });
  });
});

Deno.test("state: a minor that is held is neither freed nor held twice", () => {
  withControlFolder(() => {
    const minor = allocateMinor();
    const hold = holdMinor(minor);
    assert.throws(() => freeMinor(minor), { code: "EAGAIN", message: /minor 0.*detach/ });
    assert.throws(() => holdMinor(minor), { code: "EBUSY", message: /tapdisk-0/ });
    closeFile(hold);
    closeFile(holdMinor(minor));
    freeMinor(minor);
    assert.throws(() => holdMinor(minor), { code: "ENOENT", message: /tapdisk-0/ });
  });
});

/** Makes a socket that no process listens at. The runtime removes the file of a socket that it closes. */
function leaveSocket(path: string): void {
  const listener = Deno.listen({ transport: "unix", path: `${path}.moved` });
  Deno.renameSync(`${path}.moved`, path);
  listener.close();
  assert.ok(Deno.lstatSync(path).isSocket);
}

Deno.test("state: sockets of dead processes go, others stay", () => {
  withControlFolder((folder) => {
    Deno.mkdirSync(folder);
    const dead = 0x3fff_fffe;
    const listen = (name: string) => Deno.listen({ transport: "unix", path: `${folder}/${name}` });
    const names = [
      "ctlN",
      "nbdclientN",
      "nbdN.0",
      "nbd-oldN.0",
      "nbdserverN.0",
      "nbdserver-newN.0",
    ];
    for (const name of names) leaveSocket(`${folder}/${name.replace("N", `${dead}`)}`);
    const ours = listen(`ctl${Deno.pid}`);
    const elsewhere = listen(`ctl${dead - 1}`);
    Deno.writeTextFileSync(`${folder}/ctlx`, "");
    removeStaleSockets();
    const left = Array.from(Deno.readDirSync(folder), (entry) => entry.name).sort();
    assert.deepEqual(left, [`ctl${Deno.pid}`, `ctl${dead - 1}`, "ctlx"].sort());
    ours.close();
    elsewhere.close();
  });
});

Deno.test("state: sockets of a killed process go while nobody has waited for it", async () => {
  // The second program takes the place of the shell, and does not know of the shell's child.
  const child = new Deno.Command("sh", {
    args: ["-c", "sleep 0 & echo $!; exec sleep 30"],
    stdout: "piped",
  }).spawn();
  try {
    const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    const zombie = Number((await reader.read()).value);
    await reader.cancel();
    await until("the process is a zombie", () => {
      return / Z /.test(Deno.readTextFileSync(`/proc/${zombie}/stat`));
    });
    withControlFolder((folder) => {
      Deno.mkdirSync(folder);
      leaveSocket(`${folder}/ctl${zombie}`);
      removeStaleSockets();
      assert.deepEqual([...Deno.readDirSync(folder)], []);
    });
  } finally {
    child.kill("SIGKILL");
    await child.status;
  }
});

Deno.test("state: a socket's name tells its process", () => {
  assert.equal(ownerOfSocket("ctl12"), 12);
  for (const name of ["nbd12.3", "nbd-old12.3", "nbdserver12.3", "nbdserver-new12.3"]) {
    assert.equal(ownerOfSocket(name), 12, name);
  }
  assert.equal(ownerOfSocket("nbdclient12"), 12);
  const others = ["nbdclient12.3", "nbd12", "nbdserver12", "nbd-new12.3", "nbdserver-old1.0"];
  for (const name of ["ctl", "ctl1x", "ctl1.0", "nbdx.1", "tapdisk", ...others]) {
    assert.equal(ownerOfSocket(name), undefined, name);
  }
});

Deno.test("state: statistics are one line of JSON, spaced as the reference's", () => {
  const value = {
    name: 'vhd:/sr/"a".vhd',
    secs: [0, 8],
    images: [{ name: "/sr/a.vhd", driver: { type: 4, status: null } }],
    none: [],
    caching: "false",
  };
  const text = formatStatistics(value);
  assert.equal(
    text,
    '{ "name": "vhd:/sr/\\"a\\".vhd", "secs": [ 0, 8 ], "images": [ { "name": "/sr/a.vhd", ' +
      '"driver": { "type": 4, "status": null } } ], "none": [  ], "caching": "false" }',
  );
  assert.deepEqual(JSON.parse(text), value);
});
