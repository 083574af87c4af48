/**
 * Names with control characters, in folders and in images: no command prints such a character to
 * the terminal or at the start of a line, and JSON has each name exactly.
 *
 * @module
 */
import assert from "node:assert/strict";
import { createDynamic } from "../../src/vhd/create.ts";
import { encodeFooter, footerChecksum } from "../../src/vhd/format/footer.ts";
import { encodeHeader, headerChecksum } from "../../src/vhd/format/header.ts";
import { encodeLocation, encodeParentName, PLAT_CODE_MACX } from "../../src/vhd/format/locator.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { withTempDir } from "../support/tools.ts";
import { type ProgramResult, vhdUtil } from "../support/vhd.ts";

const FAKE = "vhd=/etc/fake.vhd capacity=1 size=1 hidden=0 parent=none";
const EVIL = `x\n${FAKE}\n\x1b]0;pwned\x07\x1b[31m\u009b2J\u202egnp\x7f\r`;

const COMMANDS: readonly (readonly string[])[] = [
  ["scan", "-f"],
  ["scan", "-f", "-v"],
  ["scan", "-p", "-a", "-v", "-c"],
  ["scan", "-c", "-M"],
  ["query", "-vsfpmdaSu", "-n"],
  ["query", "-p", "-n"],
  ["read", "-p", "-n"],
  ["check", "-n"],
  ["check", "-p", "-b", "-n"],
  ["check", "-s", "-p", "-n"],
  ["map", "-n"],
  ["tree"],
  ["repair", "-n"],
  ["coalesce", "-n"],
  ["resize", "-s", "1", "-j", "/none/j", "-n"],
  ["set", "-f", "hidden", "-v", "999", "-n"],
  ["modify", "-p", "/none", "-n"],
  ["snapshot", "-n", "/none/x", "-p"],
  ["copy", "-N", "/none/x", "-n"],
  ["key", "-p", "-n"],
  ["fill", "-b", "9", "-n"],
  ["revert", "-j", "/none/j", "-n"],
];
const JSON_COMMANDS = [["scan", "--json"], ["query", "--json", "-n"], [
  "read",
  "-p",
  "--json",
  "-n",
]]
  .concat([["check", "--json", "-n"], ["map", "--json", "-n"], ["tree", "--json"]]);

function harmless({ stdout, stderr }: ProgramResult, what: string): void {
  const text = stdout + stderr;
  for (const [character] of text.matchAll(/[\p{Cc}\p{Bidi_Control}]/gu)) {
    assert.equal(character, "\n", `${what}: ${JSON.stringify(text)}`);
  }
  const lines = text.split("\n").map((line) => line.trim());
  assert.ok(!lines.some((line) => line.startsWith(FAKE.slice(0, 20))), `${what}: ${text}`);
}

async function tryAll(path: string): Promise<void> {
  for (const command of COMMANDS) harmless(await vhdUtil(...command, path), command.join(" "));
  for (const command of JSON_COMMANDS) {
    const result = await vhdUtil(...command, path);
    harmless(result, command.join(" "));
    if (result.code === 0) JSON.parse(result.stdout);
  }
}

Deno.test("hostile names: of files, on the command line and in folders", async () => {
  await withTempDir(async (folder) => {
    const name = EVIL.replaceAll("/", "_");
    const parent = `${folder}/${name}.vhd`;
    createDynamic(parent, { sizeBytes: 4 << 20 });
    snapshot(`${folder}/child.vhd`, { parent });
    await tryAll(parent);
    await tryAll(`${folder}/child.vhd`);
    await tryAll(`${folder}/none${EVIL}`);
    Deno.writeTextFileSync(`${folder}/bad${name}`, "no image");
    await tryAll(`${folder}/bad${name}`);
    for (const command of [["tree"], ["tree", "--json"]]) {
      harmless(await vhdUtil(...command, folder), command.join(" "));
    }
    harmless(await vhdUtil("scan", "-v", "-c", "-m", `${folder}/*`), "scan");
    const scanned = JSON.parse((await vhdUtil("scan", "--json", "-m", `${folder}/*.vhd`)).stdout);
    assert.ok(scanned.some(({ vhd }: { vhd: string }) => vhd === parent), "exact in JSON");
    assert.equal(JSON.parse((await vhdUtil("query", "--json", "-n", parent)).stdout).path, parent);
  });
});

/** Changes the stored name of an image's parent in its header and locator. */
function renameStoredParent(path: string, name: string): void {
  const image = openVhd(path, { readOnly: false });
  const { header, footer, file } = image;
  assert.ok(header !== null && image.parent !== null);
  const stored = encodeLocation(PLAT_CODE_MACX, name);
  const locator = header.locators.find(({ code }) => code === PLAT_CODE_MACX);
  assert.ok(locator !== undefined);
  file.writeAt(new Uint8Array(stored), Number(locator.dataOffset));
  header.parentName = encodeParentName(name.slice(0, 250));
  footer.creatorApplication = "\x1b[m\n";
  footer.checksum = footerChecksum(encodeFooter(footer));
  const footerBytes = new Uint8Array(encodeFooter(footer));
  const renamed = {
    ...header,
    locators: header.locators.map((each) =>
      each === locator ? { ...each, dataLength: stored.length } : { ...each, code: 0 }
    ),
  };
  renamed.checksum = headerChecksum(encodeHeader(renamed));
  file.writeAt(new Uint8Array(encodeHeader(renamed)), Number(footer.dataOffset));
  file.writeAt(footerBytes, 0);
  file.writeAt(footerBytes, file.sizeBytes() - 512);
  image.close();
}

Deno.test("hostile names: of parents and creators, stored in images", async () => {
  await withTempDir(async (folder) => {
    createDynamic(`${folder}/base.vhd`, { sizeBytes: 4 << 20 });
    snapshot(`${folder}/child.vhd`, { parent: `${folder}/base.vhd` });
    renameStoredParent(`${folder}/child.vhd`, `./${EVIL}`);
    await tryAll(`${folder}/child.vhd`);
    const [image] = JSON.parse(
      (await vhdUtil("scan", "-f", "--json", `${folder}/child.vhd`)).stdout,
    );
    assert.equal(image.parent.includes(FAKE), true);
  });
});
