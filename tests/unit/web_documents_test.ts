/** The manual page, the help, the completion and the command line of `blktap web`. */
import assert from "node:assert/strict";
import { blktapCompletion } from "../../src/cli/blktap_completion.ts";
import { parseWeb } from "../../src/cli/web/arguments.ts";
import { webOptions, webPage } from "../../src/cli/web/documents.ts";
import { helpText } from "../../src/cli/web/texts.ts";
import { needs, run, runOk } from "../support/tools.ts";

Deno.test("web: the help and the manual page have every option that is taken", () => {
  const options = webOptions();
  assert.equal(options.length, 7);
  for (const option of options) {
    assert.ok(helpText().includes(option), option);
    assert.ok(webPage().includes(option.replaceAll("-", "\\-")), option);
    const isFlag = ["--allow-changes", "--help"].includes(option);
    const value = option === "--listen" ? ["localhost:1"] : isFlag ? [] : ["x"];
    assert.doesNotThrow(() => parseWeb([option, ...value]), option);
  }
});

const groff = needs("groff");
Deno.test({
  name: `blktap-web(8) is roff without a warning${groff.suffix}`,
  ignore: groff.ignore,
  async fn() {
    const options = ["-K", "utf8", "-man", "-ww", "-Tutf8", "-P-cbou"];
    const { code, stdout, stderr } = await run("groff", options, { stdin: webPage() });
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(stdout, /SYNOPSIS/);
  },
});

const bash = needs("bash");
Deno.test({
  name: `bash completes commands of blktap and options of web${bash.suffix}`,
  ignore: bash.ignore,
  async fn() {
    const complete = async (...words: string[]): Promise<string[]> => {
      const list = words.map((word) => `'${word}'`).join(" ");
      const ask = `COMP_WORDS=(blktap ${list}); COMP_CWORD=${words.length}; _blktap; ` +
        `printf '%s\\n' "\${COMPREPLY[@]}"`;
      const stdout = await runOk("bash", [
        "-c",
        `${blktapCompletion({ web: webOptions() })}\n${ask}`,
      ]);
      return stdout.split("\n").filter(Boolean);
    };
    assert.deepEqual(await complete("w"), ["web"]);
    assert.deepEqual(await complete("web", "--a"), ["--allow-changes"]);
    assert.ok((await complete("web", "--socket", "/et")).includes("/etc"));
  },
});

Deno.test("web: where the page is, and what is wrong with a command line", () => {
  const address = (...args: string[]) => parseWeb(args)?.address;
  assert.deepEqual(address(), {
    kind: "port",
    hostname: "127.0.0.1",
    port: 9753,
    isLoopback: true,
  });
  const isLocal = (listen: string): boolean => {
    const found = address("--listen", listen);
    return found?.kind === "port" && found.isLoopback;
  };
  for (const listen of ["localhost:1", "127.0.0.1:0", "127.1.2.3:80", "[::1]:80"]) {
    assert.ok(isLocal(listen), listen);
  }
  for (const listen of ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "127.0.0.1.example:1", "dom0:1"]) {
    assert.ok(!isLocal(listen), listen);
  }
  assert.deepEqual(address("--socket=/run/x"), { kind: "socket", path: "/run/x" });
  const choices = parseWeb([
    "--images",
    "/a/",
    "--images=/b",
    "--name",
    "A.example",
    "--images",
    "/",
  ]);
  assert.deepEqual([choices?.folders, choices?.names], [["/a", "/b", "/"], ["a.example"]]);
  const named = parseWeb(["--listen", "Dom0.example:9753", "--name", "b"]);
  assert.deepEqual(named?.names, ["b", "dom0.example"]);
  assert.equal(choices?.allowsChanges, false);
  assert.equal(parseWeb(["-h"]), null);
  const wrong: [RegExp, ...string[]][] = [
    [/unrecognized option/, "--allow"],
    [/unexpected argument/, "x"],
    [/no HOST:PORT/, "--listen", "80"],
    [/no HOST:PORT/, "--listen", "localhost:65536"],
    [/no HOST:PORT/, "--listen", ":80"],
    [/no name of a host/, "--name", "a b"],
    [/exclude each other/, "--listen", "localhost:1", "--socket", "/x"],
    [/longer than 107/, "--socket", `/${"x".repeat(107)}`],
    [/path is empty/, "--images", ""],
    [/requires an argument/, "--socket"],
  ];
  for (const [message, ...args] of wrong) {
    assert.throws(() => parseWeb(args), { errno: 22, message }, args.join(" "));
  }
});
