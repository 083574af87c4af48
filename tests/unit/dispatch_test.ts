import assert from "node:assert/strict";
import { calledName, chooseCall } from "../../src/cli/dispatch.ts";

Deno.test("dispatch: a command's own name takes every argument, help included", () => {
  for (const argv0 of ["vhd-util", "./vhd-util", "/usr/sbin/vhd-util"]) {
    for (const args of [[], ["query", "-n", "a.vhd"], ["--help"], ["tap-ctl"]]) {
      assert.deepEqual(chooseCall(argv0, args), { kind: "command", name: "vhd-util", args });
    }
  }
  assert.deepEqual(chooseCall("/sbin/tapdisk", ["-D"]), {
    kind: "command",
    name: "tapdisk",
    args: ["-D"],
  });
});

Deno.test("dispatch: under any other name the first argument is the command", () => {
  for (const argv0 of ["blktap", "/opt/x/dist/blktap", "deno", "vhd-util.old", ""]) {
    assert.deepEqual(chooseCall(argv0, ["tap-ctl", "list", "-p", "1"]), {
      kind: "command",
      name: "tap-ctl",
      args: ["list", "-p", "1"],
    });
  }
});

Deno.test("dispatch: some commands have no link, whose name would say too little", () => {
  for (const name of ["web", "exporter"] as const) {
    const call = { kind: "command", name, args: ["--help"] };
    assert.deepEqual(chooseCall("blktap", [name, "--help"]), call);
    assert.deepEqual(chooseCall(`/bin/${name}`, ["list"]), { kind: "unknown", name: "list" });
  }
});

Deno.test("dispatch: only the last part of a path is a name", () => {
  assert.deepEqual(chooseCall("/opt/tapdisk/blktap", []), { kind: "missing" });
  assert.deepEqual(chooseCall("blktap", ["./vhd-util"]), { kind: "unknown", name: "./vhd-util" });
});

Deno.test("dispatch: a command without a link of its own is one only behind blktap", () => {
  assert.deepEqual(chooseCall("blktap", ["doctor", "--json"]), {
    kind: "command",
    name: "doctor",
    args: ["--json"],
  });
  assert.deepEqual(chooseCall("/usr/bin/doctor", ["list"]), { kind: "unknown", name: "list" });
});

Deno.test("dispatch: help and version, in each of their spellings", () => {
  for (const help of ["help", "-h", "--help"]) {
    assert.deepEqual(chooseCall("blktap", [help, "more"]), { kind: "help" });
  }
  for (const version of ["version", "-V", "--version"]) {
    assert.deepEqual(chooseCall("blktap", [version]), { kind: "version" });
  }
});

Deno.test("dispatch: nothing, and what is no command", () => {
  assert.deepEqual(chooseCall("blktap", []), { kind: "missing" });
  for (const name of ["vhdutil", "", "--frobnicate", "constructor"]) {
    assert.deepEqual(chooseCall("blktap", [name]), { kind: "unknown", name });
  }
});

Deno.test("dispatch: the name in /proc/self/cmdline ends at its zero byte", () => {
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
  assert.equal(calledName(bytes("/bin/tap-ctl\0list\0")), "/bin/tap-ctl");
  assert.equal(calledName(bytes("\0list\0")), "");
  assert.equal(calledName(bytes("blktap")), "blktap");
  assert.equal(calledName(bytes("")), "");
});
