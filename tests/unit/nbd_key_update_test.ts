/** A client of a port that changes its keys (KeyUpdate of TLS 1.3), and asks the server to do so. */
import assert from "node:assert/strict";
import { joined, Opt } from "../support/nbd_client.ts";
import { hasTls, KEYED, option, Rig } from "../support/port_rig.ts";
import { findTool, hasTool } from "../support/tools.ts";

const REPLY_MAGIC = "0003e889045565a9";
const KEY = "00112233445566778899aabbccddeeff";

/** openssl's client, behind a relay that has asked for TLS in its place. */
class Client {
  readonly #rig: Rig;
  readonly #end;
  readonly #child: Deno.ChildProcess;
  readonly #connection: Deno.TcpConn;
  readonly #toPort: Uint8Array[] = [];
  readonly #pumps: Promise<void>[];
  printed = new Uint8Array(0);
  /** What it printed on standard error. */
  told = "";

  private constructor(rig: Rig, child: Deno.ChildProcess, connection: Deno.TcpConn) {
    this.#rig = rig;
    this.#child = child;
    this.#connection = connection;
    this.#end = rig.greeted();
    rig.exchange(this.#end, option(Opt.StartTls));
    this.#pumps = [
      pump(connection.readable, (bytes) => void this.#toPort.push(bytes)),
      pump(child.stdout, (bytes) => this.printed = joined(this.printed, bytes)),
      pump(child.stderr, (bytes) => this.told += new TextDecoder().decode(bytes)),
    ];
  }

  static async start(rig: Rig): Promise<Client> {
    const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
    const { port } = listener.addr as Deno.NetAddr;
    const child = new Deno.Command(findTool("openssl") ?? "openssl", {
      args: [
        ...["s_client", "-connect", `127.0.0.1:${port}`, "-tls1_3"],
        ...["-psk_identity", "alice", "-psk", KEY],
      ],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const connection = await listener.accept();
    listener.close();
    return new Client(rig, child, connection);
  }

  get text(): string {
    return new TextDecoder("latin1").decode(this.printed);
  }

  get replies(): number {
    const hex = Array.from(this.printed, (byte) => byte.toString(16).padStart(2, "0")).join("");
    return hex.split(REPLY_MAGIC).length - 1;
  }

  /** Runs the port until a condition holds. */
  async until(what: string, condition: () => boolean): Promise<void> {
    for (let i = 0; !condition(); i++) {
      assert.ok(i < 1000, `in vain until ${what}: ${this.#rig.log.join()}\n${this.text}`);
      for (const bytes of this.#toPort.splice(0)) this.#end.send(bytes);
      this.#rig.run();
      const answer = this.#end.receive();
      assert.ok(answer !== null, `the port hung up: ${this.#rig.log.join()}`);
      if (answer.length > 0) await this.#connection.write(answer);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** Types a line, or bytes, which openssl reads at once. */
  async type(bytes: Uint8Array): Promise<void> {
    const writer = this.#child.stdin.getWriter();
    await writer.write(bytes);
    writer.releaseLock();
  }

  async close(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.stdin.close().catch(() => {});
    await this.#child.status;
    await Promise.all(this.#pumps);
  }
}

async function pump(
  from: ReadableStream<Uint8Array>,
  to: (bytes: Uint8Array) => void,
): Promise<void> {
  try {
    for await (const bytes of from) to(bytes);
  } catch {
    // The process was killed.
  }
}

const isThere = hasTls && hasTool("openssl");

Deno.test({
  name: `TLS: a client that changes its keys goes on${isThere ? "" : " (skipped: needs openssl)"}`,
  ignore: !isThere,
  async fn() {
    const rig = new Rig(KEYED);
    const client = await Client.start(rig);
    await client.until("the handshake ends", () => client.text.includes("SSL handshake has read"));
    const list = option(Opt.List);
    await client.type(list);
    await client.until("LIST is answered", () => client.replies === 2);
    for (const [round, letter] of ["k", "K", "K"].entries()) {
      await client.type(new TextEncoder().encode(`${letter}\n`));
      await client.until(
        "openssl changes the keys",
        () => client.told.split("KEYUPDATE").length === round + 2,
      );
      await client.type(list);
      await client.until("LIST is answered again", () => client.replies === 4 + 2 * round);
    }
    await client.close();
    assert.doesNotMatch(rig.log.join(), /fail/);
    rig.close();
  },
});
