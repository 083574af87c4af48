/** The HTTP server of `blktap exporter`, with metrics of the test: what it answers, and what clients cannot do. */
import assert from "node:assert/strict";
import { namesServed, parseExporter } from "../../src/cli/exporter/arguments.ts";
import { type Client, MetricsServer } from "../../src/cli/exporter/server.ts";
import { withTempDir } from "../support/tools.ts";

const SILENT = { info(): void {}, warn(): void {}, error(): void {} };

/** Runs a server at a socket; `ask` sends bytes and returns all that comes. */
function serverTest(
  name: string,
  text: () => Promise<string>,
  body: (ask: (request: string) => Promise<string>, path: string) => Promise<void>,
  names: readonly string[] | null = null,
): void {
  Deno.test(`the exporter: ${name}`, () =>
    withTempDir(async (folder) => {
      const path = `${folder}/metrics`;
      const server = new MetricsServer(Deno.listen({ transport: "unix", path }), {
        text,
        log: SILENT,
        names,
      });
      const running = server.run();
      try {
        await body((request) => asked(path, request), path);
      } finally {
        server.close();
        await running;
      }
    }));
}

async function asked(path: string, request: string): Promise<string> {
  using client = await Deno.connect({ transport: "unix", path });
  await client.write(new TextEncoder().encode(request));
  return await new Response(client.readable).text();
}

const METRICS = "blktap_dead_tapdisks 0\n";
const metrics = (): Promise<string> => Promise.resolve(METRICS);

serverTest("answers with metrics, and their type and length", metrics, async (ask) => {
  const answer = await ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  const [head, body] = answer.split("\r\n\r\n");
  assert.equal(body, METRICS);
  assert.match(head, /^HTTP\/1\.1 200 OK\r\n/);
  assert.match(head, /^Content-Type: text\/plain; version=0\.0\.4; charset=utf-8\r?$/m);
  assert.match(head, new RegExp(`^Content-Length: ${METRICS.length}\r?$`, "m"));
  const query = await ask("GET /metrics?name[]=x HTTP/1.0\n\n");
  assert.ok(query.endsWith(METRICS));
  const first = await ask("HEAD /metrics HTTP/1.1\r\n\r\n");
  assert.ok(first.endsWith("\r\n\r\n"));
  assert.match(first, new RegExp(`^Content-Length: ${METRICS.length}\r?$`, "m"));
});

serverTest("refuses all else", metrics, async (ask) => {
  assert.match(await ask("GET /other HTTP/1.1\r\n\r\n"), /^HTTP\/1\.1 404 /);
  assert.match(await ask("GET / HTTP/1.1\r\n\r\n"), /^HTTP\/1\.1 200 [^]*\/metrics\n$/);
  assert.match(
    await ask("POST /metrics HTTP/1.1\r\n\r\n"),
    /^HTTP\/1\.1 405 [^]*\r\nAllow: GET, HEAD\r\n/,
  );
  for (
    const odd of ["hello\r\n\r\n", "GET metrics HTTP/1.1\r\n\r\n", "GET /metrics HTTP/2\r\n\r\n"]
  ) {
    assert.match(await ask(odd), /^HTTP\/1\.1 400 /, odd);
  }
  assert.equal(await ask("x".repeat(16 * 1024)), "");
});

serverTest(
  "serves no names that are not its own",
  metrics,
  async (ask) => {
    const status = async (...headers: string[]): Promise<string> =>
      (await ask(["GET /metrics HTTP/1.1", ...headers, "\r\n"].join("\r\n"))).slice(9, 12);
    assert.equal(await status("Host: localhost:9742"), "200");
    assert.equal(await status("Accept: */*", "host:127.0.0.1"), "200");
    assert.equal(await status("Host: [::1]:9742"), "200");
    assert.equal(await status("Host: Dom0.example:9742"), "200");
    assert.equal(await status("Host: evil.example:9742"), "421");
    assert.equal(await status("Host: dom0.example.evil.example"), "421");
    assert.equal(await status("Host: localhost", "Host: evil.example"), "421");
    assert.equal(await status("X: Host: localhost"), "421");
    assert.equal(await status(), "421");
    const old = (...headers: string[]): Promise<string> =>
      ask(["GET /metrics HTTP/1.0", ...headers, "\r\n"].join("\r\n"));
    assert.match(await old(), /^HTTP\/1\.1 200 /);
    assert.match(await old("Host: evil.example"), /^HTTP\/1\.1 421 /);
  },
  ["dom0.example"],
);

serverTest(
  "says that it cannot gather, and goes on",
  () => Promise.reject(new Error("no folder")),
  async (ask) => {
    for (let i = 0; i < 2; i++) {
      assert.match(await ask("GET /metrics HTTP/1.1\r\n\r\n"), /^HTTP\/1\.1 500 /);
    }
  },
);

/** A client that has sent its request, and takes what comes. */
function playedClient(request: string): { client: Client; received: string[] } {
  const received: string[] = [];
  let isSent = false;
  const client: Client = {
    read(buffer): Promise<number | null> {
      if (isSent) return Promise.resolve(null);
      isSent = true;
      return Promise.resolve(new TextEncoder().encodeInto(request, buffer).written);
    },
    write(bytes): Promise<number> {
      received.push(new TextDecoder().decode(bytes));
      return Promise.resolve(bytes.length);
    },
    closeWrite: () => Promise.resolve(),
    close(): void {},
  };
  return { client, received };
}

Deno.test("the exporter: clients that ask at the same time get one answer, made once", async () => {
  const clients = [1, 2, 3].map(() => playedClient("GET /metrics HTTP/1.1\r\n\r\n"));
  const waiting = clients.map(({ client }) => client);
  const end = Promise.withResolvers<Client>();
  const source = {
    accept(): Promise<Client> {
      const next = waiting.shift();
      return next === undefined ? end.promise : Promise.resolve(next);
    },
    close: (): void => end.reject(new Error("closed")),
  };
  const made: ((text: string) => void)[] = [];
  const text = (): Promise<string> => new Promise((resolve) => made.push(resolve));
  const server = new MetricsServer(source, { text, log: SILENT, names: null });
  const running = server.run();
  const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));
  await turn();
  assert.equal(made.length, 1);
  made[0]("all\n");
  await turn();
  for (const { received } of clients) assert.match(received.join(), /\r\n\r\nall\n$/);
  server.close();
  await running;
});

serverTest(
  "takes so many clients at once, and more when some have gone",
  metrics,
  async (ask, path) => {
    const idle = await Promise.all(
      Array.from({ length: 16 }, () => Deno.connect({ transport: "unix", path })),
    );
    let isAnswered = false;
    const answer = ask("GET /metrics HTTP/1.1\r\n\r\n").then((text) => {
      isAnswered = true;
      return text;
    });
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.equal(isAnswered, false);
    idle[0].close();
    assert.ok((await answer).endsWith(METRICS));
    for (const client of idle.slice(1)) client.close();
  },
);

Deno.test("the exporter: where it serves", () => {
  const tcp = (hostname: string, port: number, names: string[] = []) => ({
    transport: "tcp",
    hostname,
    port,
    names,
  });
  const named = ["--listen", "x:1", "--name", "Dom0.example", "--name=b"];
  assert.deepEqual(parseExporter(named), tcp("x", 1, ["dom0.example", "b"]));
  assert.deepEqual(parseExporter(["--listen", "127.0.0.1:9742"]), tcp("127.0.0.1", 9742));
  assert.deepEqual(parseExporter(["--listen=[::1]:0"]), tcp("::1", 0));
  assert.deepEqual(parseExporter(["--socket", "/x"]), { transport: "unix", path: "/x" });
  assert.equal(parseExporter(["--listen", "x:1", "-h"]), null);
  const wrong = [
    [],
    ["--listen", "9742"],
    ["--listen", "::1:9742"],
    ["--listen", "x:65536"],
    ["--listen", "x:1", "--socket", "/x"],
    ["--socket", ""],
    ["--socket", "/x", "--name", "b"],
    ["--listen", "x:1", "--name", "a/b"],
    ["--listen", "x:1", "--name", "a:9742"],
    ["more"],
    ["--port", "1"],
  ];
  for (const args of wrong) {
    assert.throws(() => parseExporter(args), { code: "EINVAL" }, args.join(" "));
  }
});

Deno.test("the exporter: names are looked at where a browser of this machine comes in, and where some are given", () => {
  const at = (address: string, ...args: string[]): readonly string[] | null => {
    const place = parseExporter(args);
    assert.ok(place !== null);
    return namesServed(place, { address, machine: "Dom0" });
  };
  assert.deepEqual(at("127.0.0.1", "--listen", "127.0.0.1:1"), ["dom0"]);
  assert.deepEqual(at("::1", "--listen", "[::1]:1"), ["dom0"]);
  assert.deepEqual(at("127.0.0.1", "--listen", "LocalHost:1", "--name", "b"), ["b", "dom0"]);
  // As Debian has the machine's own name in /etc/hosts.
  assert.deepEqual(at("127.0.1.1", "--listen", "Other.example:1"), ["other.example", "dom0"]);
  assert.deepEqual(at("0.0.0.0", "--listen", "0.0.0.0:1", "--name", "b"), ["b", "dom0"]);
  assert.deepEqual(
    at("10.0.0.1", "--listen", "Dom0.example:1", "--name", "b"),
    ["b", "dom0.example", "dom0"],
  );
  assert.equal(at("0.0.0.0", "--listen", "0.0.0.0:1"), null);
  assert.equal(at("10.0.0.1", "--listen", "dom0.example:1"), null);
  assert.equal(at("", "--socket", "/x"), null);
});
