/** Who may use the page of `blktap web`: names, origins, tokens, forms, users. */
import assert from "node:assert/strict";
import {
  Access,
  cookieName,
  hostOf,
  isHostName,
  isKnownHost,
  isSameSecret,
  makeToken,
} from "../../src/web/access.ts";
import { tableEntry, userInTable } from "../../src/web/peer.ts";

const TOKEN = "correct-horse-battery";

function access(token: string | null = TOKEN, names: readonly string[] = []): Access {
  return new Access({ token, names });
}

function request(method: string, headers: Record<string, string>) {
  return { method, headers: new Headers(headers) };
}

Deno.test("web: a page is asked for by localhost, an address, or a name that was given", () => {
  for (
    const host of [
      "localhost",
      "localhost:9753",
      "127.0.0.1:1",
      "[::1]:80",
      "10.1.2.3",
      "[fe80::1]",
    ]
  ) {
    assert.ok(isKnownHost(host, []), host);
  }
  assert.ok(isKnownHost("dom0.example:9753", ["dom0.example"]));
  assert.ok(isKnownHost("DOM0.example", ["dom0.example"]));
  assert.ok(isKnownHost("dom0.example.:9753", ["dom0.example"]) && isKnownHost("localhost.", []));
  const strangers = [
    null,
    "",
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:9753",
    "user@localhost",
    "localhost/",
    "localhost..",
    ".",
    "localhost:80:80",
    "[::1",
    "2130706433.example",
  ];
  for (const host of strangers) assert.ok(!isKnownHost(host, ["dom0.example"]), String(host));
  assert.equal(hostOf("[::1]:9"), "::1");
  assert.ok(
    isHostName("a.b-c.example") && isHostName("blktap_web") && !isHostName("a b") &&
      !isHostName("-a") && !isHostName(""),
  );
});

Deno.test("web: a request by a strange name is refused before anything else", () => {
  assert.equal(access().refusalOf(request("GET", { host: "evil.example" }))?.status, 421);
  assert.equal(access().refusalOf(request("GET", {}))?.status, 421);
  assert.equal(access().refusalOf(request("GET", { host: "localhost" })), null);
});

Deno.test("web: only GET, HEAD and POST are served", () => {
  for (const method of ["PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT"]) {
    assert.equal(access().refusalOf(request(method, { host: "localhost" }))?.status, 405, method);
  }
});

Deno.test("web: a form must come from the page itself", () => {
  const post = (headers: Record<string, string>): number | undefined =>
    access().refusalOf(request("POST", { host: "localhost:9753", ...headers }))?.status;
  assert.equal(post({ origin: "http://localhost:9753" }), undefined);
  assert.equal(post({ origin: "https://localhost:9753" }), undefined);
  assert.equal(post({}), 403);
  for (
    const origin of ["null", "http://localhost", "http://evil.example", "http://localhost:97531"]
  ) {
    assert.equal(post({ origin }), 403, origin);
  }
  assert.equal(post({ origin: "http://localhost:9753", "sec-fetch-site": "cross-site" }), 403);
  assert.equal(post({ origin: "http://localhost:9753", "sec-fetch-site": "same-site" }), 403);
});

Deno.test("web: another site may lead here, but not fetch from here", () => {
  const get = (headers: Record<string, string>): number | undefined =>
    access().refusalOf(request("GET", { host: "localhost", ...headers }))?.status;
  assert.equal(get({ "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate" }), undefined);
  assert.equal(get({ "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors" }), 403);
  assert.equal(get({ "sec-fetch-site": "same-site", "sec-fetch-mode": "cors" }), 403);
  assert.equal(get({ "sec-fetch-site": "none", "sec-fetch-mode": "navigate" }), undefined);
});

Deno.test("web: the token lets in, in a header or by the cookie that it gives", () => {
  const page = access();
  const allowed = (headers: Record<string, string>): boolean =>
    page.isAllowed(new Headers({ host: "localhost:9753", ...headers }));
  assert.ok(allowed({ authorization: `Bearer ${TOKEN}` }));
  assert.ok(!allowed({}));
  assert.ok(!allowed({ authorization: `Bearer ${TOKEN}x` }));
  assert.ok(!allowed({ authorization: `Basic ${TOKEN}` }));
  const host = "localhost:9753";
  const cookie = page.cookie(new Headers({ host }));
  assert.match(cookie, /; HttpOnly; SameSite=Strict$/);
  assert.ok(!cookie.includes(TOKEN));
  const [pair] = cookie.split(";");
  assert.ok(allowed({ cookie: `other=1; ${pair}` }));
  assert.ok(!allowed({ cookie: `${cookieName(host)}=${TOKEN}` }));
  assert.ok(!allowed({ cookie: `x${pair}` }));
  // Another page of the same host, at another port, neither takes the cookie nor replaces it.
  assert.ok(!allowed({ host: "localhost:9754", cookie: pair }));
  const names = ["localhost:9753", "localhost:9754", "localhost", "[::1]:9753"].map(cookieName);
  assert.deepEqual(names.map((name) => name.slice("blktap_web_".length)), [
    ...["9753", "9754", "default", "9753"],
  ]);
  // A wrong header is not made good by a cookie.
  assert.ok(!allowed({ cookie: pair, authorization: "Bearer wrong" }));
  // The cookie of another process, or of another token, is worth nothing.
  assert.ok(!allowed({ cookie: access().cookie(new Headers({ host })).split(";")[0] }));
  assert.ok(page.isToken(TOKEN) && !page.isToken("") && !access(null).isToken(""));
  assert.ok(access(null).isAllowed(new Headers()));
});

Deno.test("web: tokens that are made differ and are long", () => {
  const tokens = new Set(Array.from({ length: 50 }, makeToken));
  assert.equal(tokens.size, 50);
  for (const token of tokens) assert.match(token, /^[\w-]{32}$/);
  assert.ok(isSameSecret("a", "a") && !isSameSecret("a", "b") && !isSameSecret("a", "ab"));
});

Deno.test("web: the token of a form is for one purpose of one process", () => {
  const page = access();
  const token = page.formToken("snapshot 1");
  assert.ok(page.isFormToken(token, "snapshot 1"));
  assert.ok(!page.isFormToken(token, "snapshot 2"));
  assert.ok(!page.isFormToken("", "snapshot 1"));
  assert.ok(!access().isFormToken(token, "snapshot 1"));
});

Deno.test("web: the user of a client is read from the kernel's table", () => {
  const table =
    `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2619 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:C350 0100007F:2619 01 00000000:00000000 00:00000000 00000000  1000        0 2 1
   3: 0100007F:C351 0100007F:2619 06 00000000:00000000 00:00000000 00000000     0        0 4 1
   2: 0100007F:2619 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 3 1
`;
  const server = { hostname: "127.0.0.1", port: 9753 };
  const user = (port: number): number | null =>
    userInTable(table, { client: { hostname: "127.0.0.1", port }, server });
  assert.equal(user(50000), 1000);
  assert.equal(user(50001), null, "closed by its client");
  assert.equal(user(50002), null);
  assert.equal(userInTable("", { client: server, server }), null);
  assert.equal(tableEntry({ hostname: "::1", port: 80 }), "00000000000000000000000001000000:0050");
  assert.equal(
    tableEntry({ hostname: "1::2:3", port: 1 }),
    "00000100000000000000000003000200:0001",
  );
  for (const hostname of ["1::2::3", "1:2", "::g", "1.2.3", "1.2.3.400", "x"]) {
    assert.equal(tableEntry({ hostname, port: 1 }), null, hostname);
  }
});
