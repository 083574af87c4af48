/** Descriptors that were handed over: how many are kept, under which names, and who closes them. */
import assert from "node:assert/strict";
import { closeFile } from "../../ffi/files.ts";
import { socketPair } from "../../ffi/sockets.ts";
import { HandedOver } from "../../src/driver/nbd/handed_over.ts";
import { SocketEnd } from "../support/played_loop.ts";
import { tcpPair } from "../support/hand_over.ts";

const MOST_DESCRIPTORS = 10;

/** Ends of connections whose other ends are handed over. */
class Servers {
  readonly kept = new HandedOver();
  readonly #ends: SocketEnd[] = [];

  /** Hands the other end of a new connection over; returns the server's end. */
  put(name: string, pair: () => [number, number] = socketPair): SocketEnd {
    const [ours, theirs] = pair();
    const end = new SocketEnd(ours);
    this.#ends.push(end);
    this.kept.put(name, theirs);
    return end;
  }

  hangUp(end: SocketEnd): void {
    this.#ends.splice(this.#ends.indexOf(end), 1);
    end.close();
  }

  close(): void {
    for (const end of this.#ends.splice(0)) end.close();
  }
}

function isClosed(end: SocketEnd): boolean {
  return end.receive() === null;
}

Deno.test("handed over: the same name replaces, and what is taken is gone", () => {
  const servers = new Servers();
  const first = servers.put("one");
  const second = servers.put("one");
  assert.ok(isClosed(first) && !isClosed(second));
  assert.equal(servers.kept.size, 1);
  const fd = servers.kept.take("one", "nbd:one");
  assert.throws(() => servers.kept.take("one", "nbd:one"), {
    code: "ENOENT",
    message: /^Cannot open nbd:one \(no descriptor of that name was handed over/,
  });
  servers.kept.putBack("one", fd);
  assert.ok(!isClosed(second));
  const third = servers.put("two");
  const old = servers.kept.take("two", "nbd:two");
  const fourth = servers.put("two");
  servers.kept.putBack("two", old);
  assert.ok(isClosed(third) && !isClosed(fourth), "a newer one is kept");
  for (const name of ["one", "two"]) closeFile(servers.kept.take(name, name));
  servers.close();
});

Deno.test("handed over: ten are kept; those whose server hung up make room", () => {
  for (const pair of [socketPair, tcpPair]) {
    const servers = new Servers();
    const ends = Array.from({ length: MOST_DESCRIPTORS }, (_, i) => servers.put(`${i}`, pair));
    assert.throws(() => servers.put("more", pair), {
      code: "ENFILE",
      message: /"more".*10 are kept/,
    });
    servers.put("3", pair);
    assert.equal(servers.kept.size, MOST_DESCRIPTORS, "the same name needs no room");
    assert.ok(isClosed(ends[3]));
    const used = servers.kept.take("5", "nbd:5");
    servers.put("late", pair);
    servers.kept.putBack("5", used);
    assert.ok(isClosed(ends[5]), "others took its place, and the close of its image goes on");
    closeFile(servers.kept.take("late", "nbd:late"));
    servers.put("5", pair);
    servers.hangUp(ends[7]);
    assert.ok(!isClosed(servers.put("more", pair)));
    assert.throws(() => servers.kept.take("7", "nbd:7"), { code: "ENOENT" });
    for (const name of ["0", "1", "2", "3", "4", "5", "6", "8", "9", "more"]) {
      closeFile(servers.kept.take(name, name));
    }
    assert.equal(servers.kept.size, 0);
    servers.close();
  }
});
