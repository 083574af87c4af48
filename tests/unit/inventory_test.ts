/** `tap-ctl list` among many tapdisks and minors: it asks and reads no more than it has to. */
import assert from "node:assert/strict";
import { closeFile, O_RDONLY, openFile, tryLockExclusive } from "../../ffi/files.ts";
import { inventory } from "../../src/control/client/inventory.ts";
import { encodeListEntry } from "../../src/control/protocol/list.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { LyingTapdisk } from "../search/fuzz/wire/lying_tapdisk.ts";
import { withTempDir } from "../support/tools.ts";

const END = encodeListEntry(0, { count: 0, minor: -1, state: 0, path: "" });

/** The answer of a tapdisk that has these minors. */
function answerOf(minors: readonly number[]): Uint8Array<ArrayBuffer> {
  const entries = minors.map((minor, index) =>
    encodeListEntry(0, { count: minors.length - index, minor, state: 0, path: `vhd:/${minor}` })
  );
  return Uint8Array.from([...entries, END].flatMap((message) => [...message]));
}

/** A control folder. */
class Rig {
  readonly #folder: string;
  readonly #tapdisks: LyingTapdisk[] = [];

  constructor(folder: string) {
    this.#folder = folder;
    Deno.mkdirSync(`${folder}/tapdisk`);
  }

  allocate(...minors: number[]): void {
    for (const minor of minors) {
      Deno.writeTextFileSync(`${this.#folder}/tapdisk/tapdisk-${minor}`, "");
    }
  }

  /** A tapdisk that answers once, and never again; without an answer, never at all. */
  async tapdisk(pid: number, answer?: Uint8Array<ArrayBuffer>): Promise<void> {
    const tapdisk = await LyingTapdisk.start(`${this.#folder}/ctl${pid}`);
    this.#tapdisks.push(tapdisk);
    const silence = { read: MESSAGE_BYTES, answer: END, times: 0, stays: true };
    tapdisk.tell(
      answer === undefined ? [silence] : [{ ...silence, answer, times: 1, stays: false }, silence],
    );
  }

  /** The name of a tapdisk's NBD socket. */
  serve(pid: number, minor: number): void {
    Deno.writeTextFileSync(`${this.#folder}/nbd${pid}.${minor}`, "");
  }

  /** Holds the lock of a minor, as a process that is no tapdisk. */
  lock(minor: number): Disposable {
    const fd = openFile(`${this.#folder}/tapdisk/tapdisk-${minor}`, O_RDONLY);
    assert.ok(tryLockExclusive(fd));
    return { [Symbol.dispose]: () => closeFile(fd) };
  }

  end(): void {
    for (const tapdisk of this.#tapdisks) tapdisk.end();
  }
}

function test(name: string, body: (rig: Rig) => Promise<void>): void {
  Deno.test(`inventory: ${name}`, () =>
    withTempDir(async (folder) => {
      const rig = new Rig(folder);
      const before = Deno.env.get("BLKTAP_CONTROL_DIR");
      Deno.env.set("BLKTAP_CONTROL_DIR", folder);
      try {
        await body(rig);
      } finally {
        if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
        else Deno.env.set("BLKTAP_CONTROL_DIR", before);
        rig.end();
      }
    }));
}

/** The files that `body` reads by the runtime's call. */
function filesReadBy(body: () => void): string[] {
  const read = Deno.readTextFileSync;
  const seen: string[] = [];
  Deno.readTextFileSync = (path) => {
    seen.push(`${path}`.replace(/.*\//, ""));
    return read(path);
  };
  try {
    body();
  } finally {
    Deno.readTextFileSync = read;
  }
  return seen;
}

test("a minor with a socket is asked of that tapdisk alone, and nothing is read", async (rig) => {
  rig.allocate(1, 2, 3, 7);
  await rig.tapdisk(101, answerOf([2, 7]));
  await rig.tapdisk(102);
  rig.serve(101, 7);
  // The holder is no tapdisk that has a socket, so any tapdisk could have the minor.
  using _held = rig.lock(7);
  const read = filesReadBy(() => {
    const found = inventory({ minor: 7 });
    assert.deepEqual(found.map(({ pid, minor, args }) => [pid, minor, args]), [[101, 7, "vhd:/7"]]);
    assert.match(`${found[0].nbd}`, /\/nbd101\.7$/);
  });
  assert.deepEqual(read, []);
});

test("a tapdisk that has a minor's socket and not the minor is not believed", async (rig) => {
  rig.allocate(7);
  await rig.tapdisk(101, answerOf([2]));
  await rig.tapdisk(102, answerOf([7]));
  rig.serve(101, 7);
  using _held = rig.lock(7);
  const found = inventory({ minor: 7 });
  assert.deepEqual(found.map(({ pid, minor }) => [pid, minor]), [[102, 7]]);
});

test("of the minors without a tapdisk, only the wanted one is read", async (rig) => {
  rig.allocate(1, 2, 3, 7);
  await rig.tapdisk(101, answerOf([2]));
  const read = filesReadBy(() => {
    assert.deepEqual(inventory({ minor: 7 }).map(({ pid, minor }) => [pid, minor]), [[null, 7]]);
  });
  assert.deepEqual(read, ["locks", "tapdisk-7"]);
});

test("a tapdisk of many disks has them all in one answer", async (rig) => {
  const minors = Array.from({ length: 300 }, (_, minor) => minor);
  rig.allocate(...minors, 300);
  await rig.tapdisk(101, answerOf(minors));
  const found = inventory();
  assert.deepEqual(found.map(({ minor }) => minor), [...minors, 300]);
  assert.equal(found[299].args, "vhd:/299");
});
