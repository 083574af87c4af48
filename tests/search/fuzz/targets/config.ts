/**
 * What administrators and scripts write: the list of disks, the folders of parents, state files in the
 * control folder, names of images, and command lines of the three programs. Nothing is thrown that is
 * not a `SystemError`, a command line with a wrong option does nothing, and no output acts on a
 * terminal.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../../../ffi/errno.ts";
import { cbtUtilMain } from "../../../../src/cli/cbt_util/main.ts";
import { tapCtlMain } from "../../../../src/cli/tap_ctl/main.ts";
import { tapdiskMain } from "../../../../src/cli/tapdisk/main.ts";
import { vhdUtilMain } from "../../../../src/cli/vhd_util/main.ts";
import { splitArguments } from "../../../../src/cli/stdin_arguments.ts";
import { parseDeviceList } from "../../../../src/control/client/device_list.ts";
import { inventory } from "../../../../src/control/client/inventory.ts";
import { restoredNames } from "../../../../src/control/client/restore.ts";
import { readMinorRecord } from "../../../../src/control/minors/minor_record.ts";
import { fileInName, isImageName, lastLayer } from "../../../../src/driver/layers.ts";
import { parseListen } from "../../../../src/control/client/serve_choices.ts";
import { parseExportName } from "../../../../src/driver/nbd/export_name.ts";
import { parseParentRoots } from "../../../../src/files/confinement.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { createDynamic } from "../../../../src/vhd/create.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { anyBytes, mutated, pick } from "../wire/choose.ts";
import { quietly } from "../wire/quietly.ts";

const CASES_OF_BATCH = 120;
const COMMAND_LINES = 12;
const NO_OPTION = "--no-such-option";
const UNPRINTABLE = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/u;

const WORDS = [
  ...[
    "vhd:/x",
    "aio:/y",
    "a",
    "name",
    "control",
    "blktap0",
    "../x",
    "-",
    "--",
    "#",
    "ro",
    "noauto",
  ],
  ...[
    "timeout=5",
    "timeout=99999",
    "retry=transient",
    "retry=",
    "device=none",
    "device=",
    "queue=io_uring",
    "key-file=/k",
    "=,=",
  ],
  ...[
    "no-direct",
    "defaults",
    "__proto__",
    "constructor",
    "toString",
    "\\040",
    "\\777",
    "vhd:/a\\040b",
  ],
  ...[
    "\u001b[31m",
    "\u202e",
    "é",
    "\ud800",
    "x".repeat(300),
    "log:bc:4:vhd:/x",
    "nbd:h:1",
    "",
    "any",
  ],
  ...[
    "/srv",
    ":",
    "0",
    "-1",
    "1e9",
    "0x10",
    "99999999999999999999",
    "{}",
    "[]",
    "null",
    '{"pid":1}',
  ],
];

/** Subcommands that only read, and so may run. */
const READERS = ["query", "read", "check", "scan"];
const WRITERS = [
  "create",
  "snapshot",
  "coalesce",
  "resize",
  "fill",
  "modify",
  "set",
  "repair",
  "copy",
];
const HARMLESS = ["list", "attach", "detach", "open", "close", "pause", "unpause", "stats", "log"];
const STARTERS = [
  "spawn",
  "create",
  "recover",
  "restore",
  "destroy",
  "snapshot",
  "free",
  "allocate",
];
const OPTIONS = [
  "-n",
  "-m",
  "-p",
  "-a",
  "-s",
  "-v",
  "-f",
  "-r",
  "-j",
  "-t",
  "-R",
  "-C",
  "-c",
  "-2",
  "-e",
  "--json",
];

class ConfigTarget implements Target {
  #folder = "";

  setUp({ folder }: SearchContext): void {
    this.#folder = `${folder}/config`;
    Deno.mkdirSync(`${this.#folder}/control/tapdisk`, { recursive: true });
    Deno.mkdirSync(`${this.#folder}/control/names`);
    Deno.mkdirSync(`${this.#folder}/files`);
    createDynamic(`${this.#folder}/files/canary.vhd`, { sizeBytes: 4 << 20 });
  }

  async run(random: Random, context: SearchContext): Promise<number> {
    const before = Deno.env.get("BLKTAP_CONTROL_DIR");
    Deno.env.set("BLKTAP_CONTROL_DIR", `${this.#folder}/control`);
    try {
      for (let i = 0; i < CASES_OF_BATCH; i++) this.#parse(random, context);
      for (let i = 0; i < COMMAND_LINES; i++) await this.#commandLine(random, context);
    } finally {
      if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
      else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    }
    return CASES_OF_BATCH + COMMAND_LINES;
  }

  #parse(random: Random, context: SearchContext): void {
    const text = anyText(random);
    const kind = random.below(6);
    context.trace(`text ${kind}: ${JSON.stringify(text.slice(0, 200))}`);
    if (kind === 0) checkDeviceList(text);
    else if (kind === 1) checkNames(text);
    else if (kind === 2) this.#minorFile(random, text);
    else if (kind === 3) this.#nameFile(text);
    else if (kind === 4) checkArguments(random, text);
    else {
      const roots = parseParentRoots(text);
      const isRoot = (root: string): boolean => /^(?:\/.*|any|rbd)$/s.test(root);
      assert.ok(roots.every(isRoot), `${roots}`);
    }
  }

  /** The file of a minor that a tapdisk left; its fields are of any type. */
  #minorFile(random: Random, text: string): void {
    const any = (): unknown => pick(random, [text, 1, -1, 1e99, true, null, [], {}, "/dev/null"]);
    const good: Record<string, unknown> = {
      image: "vhd:/x",
      requestTimeoutSeconds: 0,
      readOnly: false,
      direct: true,
      localCache: false,
      changedBlocks: null,
      secondary: "vhd:/y",
      standby: false,
      existingParent: 1,
      full: false,
      device: "none",
      queue: "auto",
      node: "/dev/null",
      encrypted: false,
    };
    const field = pick(random, [...Object.keys(good), "none", "__proto__"]);
    const value = random.chance(0.7) ? JSON.stringify({ ...good, [field]: any() }) : text;
    Deno.writeTextFileSync(`${this.#folder}/control/tapdisk/tapdisk-3`, value);
    const record = readMinorRecord(3);
    if (record !== null) {
      const types = [record.image, record.node].every((name) => typeof name === "string") &&
        typeof record.encrypted === "boolean" && record.requestTimeoutSeconds >= 0 &&
        Number.isInteger(record.existingParent ?? 0) &&
        record.requestTimeoutSeconds < 65_536 && record.requestTimeoutSeconds % 1 === 0;
      assert.ok(types, `a record of ${value}`);
    }
    for (const entry of inventory()) {
      assert.ok(entry.minor === null || (entry.minor >= 0 && entry.minor < 2 ** 31), value);
    }
  }

  #nameFile(text: string): void {
    const path = `${this.#folder}/control/names/disk`;
    Deno.writeTextFileSync(path, text);
    assert.ok(restoredNames().every((name) => name === "disk"));
  }

  async #commandLine(random: Random, context: SearchContext): Promise<void> {
    const program = pick(random, ["vhd-util", "tap-ctl", "tapdisk", "cbt-util"]);
    const isWrong = program === "tapdisk" || random.chance(0.7);
    const names = program === "vhd-util"
      ? [...READERS, ...isWrong ? WRITERS : []]
      : program === "cbt-util"
      ? ["get", "extents", ...isWrong ? ["create", "set", "coalesce"] : []]
      : [...HARMLESS, ...isWrong ? STARTERS : []];
    const args = program === "tapdisk" ? [] : [pick(random, names)];
    for (let left = random.below(6); left > 0; left--) {
      const file = `${this.#folder}/files/${pick(random, ["canary.vhd", "none", "\u001b]0;x"])}`;
      const any = random.chance(0.5) ? pick(random, WORDS) : file;
      args.push(random.chance(0.5) ? pick(random, OPTIONS) : any);
    }
    const end = args.indexOf("--");
    const last = end < 0 ? args.length : end;
    const first = program === "tapdisk" ? 0 : 1;
    // As the first option: no option before it takes it for its value.
    if (isWrong) args.splice(Math.min(first, last), 0, NO_OPTION);
    context.trace(`${program} ${JSON.stringify(args)}`);
    await this.#run(program, args, isWrong);
  }

  async #run(program: string, args: readonly string[], isWrong: boolean): Promise<void> {
    const before = this.#state();
    const shown = `${program} ${JSON.stringify(args)}`;
    const mains = {
      "vhd-util": vhdUtilMain,
      "tap-ctl": tapCtlMain,
      tapdisk: tapdiskMain,
      "cbt-util": cbtUtilMain,
    };
    const main = mains[program as keyof typeof mains];
    const { result: status, printed } = await quietly(() => main([...args]));
    assert.ok(
      Number.isInteger(status) && status >= 0 && status < 256,
      `${shown} ends with ${status}`,
    );
    if (isWrong) assert.equal(status, Errno.EINVAL, `${shown} ends with ${status}: ${printed}`);
    if (status !== 0) assert.ok(printed.trim() !== "", `${shown} fails without a word`);
    const line = printed.split("\n").find((each) => UNPRINTABLE.test(each.replaceAll("\t", " ")));
    assert.equal(line, undefined, `${shown} prints ${JSON.stringify(line)}`);
    assert.equal(this.#state(), before, `${shown} changes files`);
  }

  /** The files that no command line may change. */
  #state(): string {
    const folder = `${this.#folder}/files`;
    return [...Deno.readDirSync(folder)].map(({ name }) => {
      const { size, mtime, mode } = Deno.statSync(`${folder}/${name}`);
      return [name, size, mtime?.getTime(), mode].join();
    }).sort().join(";");
  }
}

function anyText(random: Random): string {
  const lines = Array.from({ length: random.below(6) }, () => {
    const words = Array.from({ length: random.below(5) }, () => pick(random, WORDS));
    return words.join(pick(random, [" ", "\t", ",", ":", "/", "  ", "\u00a0"]));
  });
  const text = lines.join(pick(random, ["\n", "\n", "\r\n", "\0"]));
  if (random.chance(0.8)) return text;
  return new TextDecoder().decode(mutated(random, new TextEncoder().encode(text)));
}

function checkDeviceList(text: string): void {
  const { devices, faults } = parseDeviceList(text);
  const names = devices.map(({ name }) => name);
  assert.equal(new Set(names).size, names.length, "a name is in the list twice");
  for (const { name, image, keyFile, requestTimeoutSeconds } of devices) {
    assert.match(name, /^[A-Za-z0-9][A-Za-z0-9._+-]*$/);
    assert.ok(name !== "control" && isImageName(image), `${name} ${image}`);
    assert.ok(keyFile === undefined || keyFile.startsWith("/"));
    assert.ok(requestTimeoutSeconds >= 0 && requestTimeoutSeconds < 65_536);
  }
  const lines = text.split("\n").map((line) => line.trim());
  const filled = lines.filter((line) => line !== "" && !line.startsWith("#")).length;
  assert.equal(devices.length + faults.length, filled);
}

/** Calls what may throw a `SystemError`. */
function systemErrorsOnly(call: () => unknown): void {
  try {
    call();
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}

function checkNames(text: string): void {
  isImageName(text);
  fileInName(text);
  systemErrorsOnly(() => lastLayer(text));
  systemErrorsOnly(() => parseExportName(text));
  systemErrorsOnly(() => parseExportName(text, undefined, true));
  const listen = parseListen(text);
  assert.ok(listen === null || (listen.port >= 0 && listen.port <= 65_535 && listen.host !== ""));
}

function checkArguments(random: Random, text: string): void {
  const bytes = random.chance(0.5) ? new TextEncoder().encode(text) : anyBytes(random, 40);
  const args = splitArguments(bytes);
  const ends = bytes.filter((byte) => byte === 0).length;
  assert.ok(args.length === ends || args.length === ends + 1);
}

export const target: Target = new ConfigTarget();
