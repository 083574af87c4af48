/** The front door of `blktap web`: clients are counted, and none stays that says nothing. */
import assert from "node:assert/strict";
import {
  FrontDoor,
  type FrontDoorOptions,
  MOST_CONNECTIONS,
  MOST_OF_ADDRESS,
  MOST_STRANGERS,
} from "../../src/web/front_door.ts";
import { withTempDir } from "../support/tools.ts";
import { ask, connect, requestText } from "../support/web.ts";

/** Longer than a test. */
const LONG_MS = 600_000;

interface Rig {
  readonly port: number;
  readonly door: FrontDoor;
  /** Requests that came to the HTTP server. */
  readonly seen: string[];
}

function portOf({ addr }: Deno.Listener): number {
  return addr.transport === "tcp" ? addr.port : 0;
}

function withDoor(
  options: Partial<FrontDoorOptions>,
  body: (rig: Rig) => Promise<void>,
  { listener = Deno.listen({ hostname: "127.0.0.1", port: 0 }) }: { listener?: Deno.Listener } = {},
): Promise<void> {
  return withTempDir(async (folder) => {
    const inner = `${folder}/inner`;
    const seen: string[] = [];
    const http = Deno.serve({ path: inner, onListen: () => {} }, async (request) => {
      // Of a body that does not come, nothing is said.
      const text = await request.text().catch(() => "");
      seen.push(`${request.method} ${new URL(request.url).pathname} ${text}`);
      return new Response("well", { headers: { connection: "close" } });
    });
    const door = new FrontDoor(listener, { inner, mayConnect: () => true, ...options });
    const running = door.run();
    try {
      await body({ port: portOf(listener), door, seen });
    } finally {
      door.close();
      await running;
      await http.shutdown();
    }
  });
}

/** Waits until a connection has ended; returns what came before. */
async function rest(conn: Deno.Conn): Promise<string> {
  let text = "";
  try {
    for await (const part of conn.readable) text += new TextDecoder().decode(part);
  } catch (error) {
    if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
  }
  return text;
}

Deno.test("web: the front door passes requests and answers, one for each connection", () =>
  withDoor({}, async ({ port, seen }) => {
    const answer = await ask({ port }, {
      method: "POST",
      path: "/x?y",
      body: "a=".padEnd(5000, "b"),
    });
    assert.deepEqual([answer.status, answer.body], [200, "well"]);
    assert.deepEqual(seen, [`POST /x ${"a=".padEnd(5000, "b")}`]);
    const conn = await connect({ port });
    // Without a word on how long the connection is to be.
    await conn.write(new TextEncoder().encode("GET /a HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    assert.match(await rest(conn), /well/);
  }));

Deno.test("web: a client that says nothing, or never ends its head, is left", () =>
  withDoor({ headerMs: 400 }, async ({ port, door, seen }) => {
    const silent = await connect({ port });
    const slow = await connect({ port });
    await slow.write(new TextEncoder().encode("GET / HTTP/1.1\r\nhost: localhost\r\n"));
    assert.deepEqual(await Promise.all([rest(silent), rest(slow)]), ["", ""]);
    assert.deepEqual([seen, door.count], [[], 0]);
  }));

Deno.test("web: a head that is too long ends its connection", () =>
  withDoor({}, async ({ port, seen }) => {
    const conn = await connect({ port });
    const line = `x: ${"y".repeat(1000)}\r\n`;
    const text = `GET / HTTP/1.1\r\n${line.repeat(40)}\r\n`;
    await conn.write(new TextEncoder().encode(text)).catch(() => {});
    assert.equal(await rest(conn), "");
    assert.deepEqual(seen, []);
  }));

Deno.test("web: a connection on which nothing moves ends", () =>
  withDoor({ idleMs: 400 }, async ({ port, door }) => {
    const conn = await connect({ port });
    // The body does not come.
    const head = requestText({ method: "POST", headers: { "content-length": "10" } });
    await conn.write(new TextEncoder().encode(head));
    await rest(conn);
    assert.equal(door.count, 0);
  }));

Deno.test("web: a stranger is told so, and is not passed on", () =>
  withDoor({ mayConnect: () => false }, async ({ port, seen }) => {
    const { status, body } = await ask({ port });
    assert.equal(status, 403);
    assert.match(body, /^Only root and the user/);
    assert.deepEqual(seen, []);
  }));

/** Waits until so many clients are connected. */
async function untilCount(door: FrontDoor, wanted: number): Promise<void> {
  const untilMs = performance.now() + 60_000;
  while (door.count !== wanted) {
    assert.ok(performance.now() < untilMs, `${door.count} clients, not ${wanted}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

Deno.test("web: strangers take no places of those who may connect", () => {
  const strangers: { left: number } = { left: 0 };
  return withDoor(
    { mayConnect: () => strangers.left-- <= 0, headerMs: LONG_MS },
    async ({ port, door }) => {
      strangers.left = MOST_CONNECTIONS + MOST_STRANGERS;
      const open: Deno.Conn[] = [];
      for (let i = 0; i < MOST_CONNECTIONS + MOST_STRANGERS; i++) {
        open.push(
          await connect({ port }),
        );
      }
      const { status } = await ask({ port });
      assert.equal(status, 200);
      await untilCount(door, MOST_STRANGERS);
      for (const conn of open) conn.close();
      await untilCount(door, 0);
    },
  );
});

Deno.test("web: what is no request of HTTP/1.1 is refused, and does not wait longer than others", () =>
  withDoor({}, async ({ port, door, seen }) => {
    const texts = [
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "\r\n\r\n",
      "GET * HTTP/1.1\r\nhost: localhost\r\n\r\n",
      "CONNECT evil.example:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ];
    for (const text of texts) {
      const conn = await connect({ port });
      await conn.write(new TextEncoder().encode(text));
      assert.match(await rest(conn), /^HTTP\/1\.1 400 Bad Request\r\n/, text);
    }
    await untilCount(door, 0);
    assert.deepEqual(seen, []);
  }));

Deno.test("web: a head may come byte by byte", () =>
  withDoor({}, async ({ port, seen }) => {
    const conn = await connect({ port });
    for (const byte of new TextEncoder().encode(requestText({ path: "/slow" }))) {
      await conn.write(new Uint8Array([byte]));
    }
    assert.match(await rest(conn), /well/);
    assert.deepEqual(seen, ["GET /slow "]);
  }));

Deno.test("web: one address has half of all connections", () =>
  withDoor({ headerMs: LONG_MS }, async ({ port, door }) => {
    const open: Deno.Conn[] = [];
    for (let i = 0; i < MOST_OF_ADDRESS; i++) open.push(await connect({ port }));
    await untilCount(door, MOST_OF_ADDRESS);
    const { status } = await ask({ port });
    assert.equal(status, 503);
    open.splice(0, 10).forEach((conn) => conn.close());
    const untilMs = performance.now() + 60_000;
    while ((await ask({ port })).status !== 200) assert.ok(performance.now() < untilMs);
    for (const conn of open) conn.close();
  }));

Deno.test("web: all connections together have a limit", () =>
  withTempDir(async (folder) => {
    // On a UNIX socket, clients have no addresses.
    const path = `${folder}/outer`;
    await withDoor({ headerMs: LONG_MS }, async ({ door }) => {
      const open: Deno.Conn[] = [];
      for (let i = 0; i < MOST_CONNECTIONS; i++) open.push(await connect({ path }));
      await untilCount(door, MOST_CONNECTIONS);
      assert.equal(await rest(await connect({ path })), "");
      for (const conn of open) conn.close();
      await untilCount(door, 0);
      assert.equal((await ask({ path })).status, 200);
    }, { listener: Deno.listen({ transport: "unix", path }) });
  }));
