/** Names of exports with several servers, and with TLS. */
import assert from "node:assert/strict";
import { type ExportName, parseExportName } from "../../src/driver/nbd/export_name.ts";

const NO_SOCKET = (): boolean => false;
const PLAIN = {
  certificates: null,
  psk: null,
  username: "",
  hostname: null,
  verifyPeer: true,
};

function parse(text: string): ExportName {
  return parseExportName(text, NO_SOCKET, true);
}

/** Calls `body` with these variables of the environment. */
function withEnvironment(values: Record<string, string>, body: () => void): void {
  for (const [name, value] of Object.entries(values)) Deno.env.set(name, value);
  try {
    body();
  } finally {
    for (const name of Object.keys(values)) Deno.env.delete(name);
  }
}

Deno.test("names of exports: several servers", () => {
  const parsed = parseExportName("//a,[::1]:7,b:8/x%20y", NO_SOCKET);
  assert.deepEqual(parsed, {
    server: {
      kind: "tcp",
      host: "a",
      port: 10809,
      others: [{ host: "::1", port: 7 }, { host: "b", port: 8 }],
    },
    exportName: "x y",
  });
  for (
    const name of ["//a,/x", "//,a/x", "//a,b:0/x", "//a,b:x/x", "//u@a/x", "//a/x?tls-username=u"]
  ) {
    assert.throws(() => parseExportName(name, NO_SOCKET), { code: "EINVAL" }, name);
  }
});

Deno.test("names of exports: TLS and its parameters", () => {
  const tcp = { kind: "tcp", host: "h", port: 10809 };
  const cases: [string, Partial<typeof PLAIN> | object][] = [
    ["//h/n", {}],
    ["//h/n?tls-certificates=/c%26d", { certificates: "/c&d" }],
    ["//alice@h/n?tls-psk-file=/k", { psk: "/k", username: "alice" }],
    ["//h/n?tls-psk-file=/k&tls-username=bob", { psk: "/k", username: "bob" }],
    ["//a%40b@h/n?tls-psk-file=/k&tls-username=bob", { psk: "/k", username: "a@b" }],
    ["//h/n?tls-hostname=x&tls-verify-peer=0", { hostname: "x", verifyPeer: false }],
    ["//h/n?tls-verify-peer=true", {}],
  ];
  for (const [name, tls] of cases) {
    assert.deepEqual(
      parse(name),
      { server: tcp, exportName: "n", tls: { ...PLAIN, ...tls } },
      name,
    );
  }
  const unix = { kind: "unix", path: "/s" };
  assert.deepEqual(parse("///n?socket=/s&tls-certificates=/c"), {
    server: unix,
    exportName: "n",
    tls: { ...PLAIN, certificates: "/c" },
  });
  // nbdkit prints such URIs.
  assert.deepEqual(parse("//?socket=/s"), { server: unix, exportName: "", tls: PLAIN });
  const wrong = [
    ...["h:1", "unix:/s", "name", "/s", "//h/n?tls-certificates=c", "//h/n?tls-psk-file=k"],
    ...["//h/n?tls-verify-peer=maybe", "//h/n?other=1", "//h/n?tls-hostname=a&tls-hostname=b"],
    ...["//h/n?tls-certificates=/c&tls-psk-file=/k", "//h/n?socket=/s", "//h/n?", "///n"],
  ];
  for (const name of wrong) assert.throws(() => parse(name), { code: "EINVAL" }, name);
});

Deno.test("names of exports: TLS of the environment, unless the name says more", () => {
  withEnvironment({ BLKTAP_TLS_CERTIFICATES: "/c" }, () => {
    assert.equal(parse("//h/n").tls?.certificates, "/c");
    assert.equal(parse("//h/n?tls-certificates=/d").tls?.certificates, "/d");
    const keyed = parse("//h/n?tls-psk-file=/k").tls;
    assert.deepEqual([keyed?.psk, keyed?.certificates], ["/k", null]);
  });
  withEnvironment({ BLKTAP_TLS_PSK_FILE: "/k", BLKTAP_TLS_USERNAME: "eve" }, () => {
    assert.deepEqual(parse("//h/n").tls, { ...PLAIN, psk: "/k", username: "eve" });
    const { tls } = parse("//h/n?tls-certificates=/c");
    assert.deepEqual([tls?.certificates, tls?.psk], ["/c", null]);
  });
  withEnvironment({ BLKTAP_TLS_PSK_FILE: "keys" }, () => {
    assert.throws(() => parse("//h/n"), { code: "EINVAL" });
  });
});
