import assert from "node:assert/strict";
import { closeFile, O_CREAT, O_WRONLY, openFile } from "../../ffi/files.ts";
import { compareNames, decodeName, encodeName } from "../../ffi/names.ts";
import {
  linkPath,
  namesInFolder,
  pathExists,
  pathStatus,
  realPath,
  removePath,
  renamePath,
} from "../../ffi/paths.ts";
import { expandGlob } from "../../src/cli/glob.ts";
import { decodeResponse, encodeError } from "../../src/control/protocol/answers.ts";
import { decodePathField, encodePathField } from "../../src/control/protocol/message.ts";
import {
  decodeLocation,
  encodeLocation,
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
} from "../../src/vhd/format/locator.ts";
import { withTempDir } from "../support/tools.ts";

function sameBytes(bytes: Uint8Array): void {
  const text = decodeName(bytes);
  assert.equal(encodeName(text).toHex(), bytes.toHex());
  assert.equal(JSON.parse(JSON.stringify(text)), text);
}

function touch(path: string): void {
  closeFile(openFile(path, O_CREAT | O_WRONLY));
}

Deno.test("names: every pair of bytes leads to a string and back", () => {
  for (let pair = 0; pair < 0x10000; pair++) sameBytes(Uint8Array.of(pair >> 8, pair & 0xff));
});

Deno.test("names: bytes at the edges of UTF-8 lead to a string and back", () => {
  const edges = [0x2f, 0x7f, 0x80, 0x8f, 0x90, 0xa0, 0xbf, 0xc1, 0xe0, 0xed, 0xf0, 0xf4, 0xf5];
  for (const a of edges) {
    for (const b of edges) {
      for (const c of edges) for (const d of edges) sameBytes(Uint8Array.of(a, b, c, d));
    }
  }
});

Deno.test("names: UTF-8 stays as it is, a byte-order mark too", () => {
  for (const text of ["a b", "ä", "日本", "😀.vhd", "\ufeffx", "\uffff", "\u{10ffff}"]) {
    assert.equal(decodeName(new TextEncoder().encode(text)), text);
    assert.deepEqual(encodeName(text), new TextEncoder().encode(text));
  }
});

Deno.test("names: a byte that is no UTF-8 is U+DC00 plus itself, as in Python", () => {
  assert.equal(decodeName(Uint8Array.of(0x62, 0xe4, 0x64)), "b\udce4d");
  assert.equal(decodeName(Uint8Array.of(0xed, 0xa0, 0x80)), "\udced\udca0\udc80");
  assert.deepEqual(encodeName("😀\udcff"), Uint8Array.of(0xf0, 0x9f, 0x98, 0x80, 0xff));
});

Deno.test("names: the order is that of the bytes", () => {
  const names = ["", "a", "aä", "a\udce4", "a\uffff", "a😀", "a😁", "b", "\udc80", "a\udcf0"];
  const byBytes = names.toSorted((a, b) => {
    const [hexA, hexB] = [encodeName(a).toHex(), encodeName(b).toHex()];
    return hexA === hexB ? 0 : hexA < hexB ? -1 : 1;
  });
  assert.deepEqual(names.toSorted(compareNames), byBytes);
});

Deno.test("names: a folder's are listed, whatever bytes they are, and however many", async () => {
  await withTempDir((folder) => {
    const names: string[] = [];
    for (let byte = 1; byte < 256; byte++) {
      if (byte !== 0x2f) names.push(`x${decodeName(Uint8Array.of(byte))}`);
    }
    for (let i = 0; i < 3000; i++) names.push(`name-${i}-${"x".repeat(30)}`);
    for (const name of names) touch(`${folder}/${name}`);
    assert.deepEqual(namesInFolder(folder).sort(), names.sort());
    const found = expandGlob("x?", () => {}, folder);
    assert.equal(found.length, 254);
    assert.deepEqual(found, found.toSorted(compareNames));
    assert.throws(() => namesInFolder(`${folder}/none`), { code: "ENOENT" });
    assert.throws(() => namesInFolder(`${folder}/${names[0]}`), { code: "ENOTDIR" });
  });
});

Deno.test("names: files are found, linked, renamed and removed by any name", async () => {
  await withTempDir((folder) => {
    const [a, b, c] = ["a\udce4", "b\udcff\udc80", "c\n"].map((name) => `${folder}/${name}`);
    touch(a);
    assert.ok(
      pathExists(a) && pathStatus(a).kind === "file" && pathStatus(folder).kind === "directory",
    );
    assert.equal(realPath(a), `${realPath(folder)}/a\udce4`);
    linkPath(a, b);
    assert.equal(pathStatus(a).inode, pathStatus(b).inode);
    assert.throws(() => linkPath(a, b), { code: "EEXIST" });
    renamePath(b, c);
    removePath(a);
    assert.deepEqual(namesInFolder(folder), ["c\n"]);
    Deno.symlinkSync("nowhere", `${folder}/dangling`);
    assert.equal(pathExists(`${folder}/dangling`), false);
    assert.equal(pathExists(`${folder}/dangling`, { link: true }), true);
    assert.equal(pathExists("a\0b"), false);
    for (const act of [pathStatus, realPath, removePath]) {
      assert.throws(() => act(a), { code: "ENOENT" }, act.name);
    }
    assert.throws(() => renamePath(a, b), { code: "ENOENT" });
  });
});

Deno.test("names: parent locators and control messages carry them exactly", () => {
  const path = "/images/b\udce4d.vhd";
  for (const code of [PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU]) {
    const stored = encodeLocation(code, path);
    const read = decodeLocation(code, stored);
    assert.equal(read?.endsWith(path), true, `${read}`);
  }
  const url = encodeLocation(PLAT_CODE_MACX, path);
  assert.equal(url.toHex(), "66696c653a2f2f2f696d616765732f62e4642e766864");
  assert.equal(decodePathField(encodePathField(path)), path);
});

Deno.test("names: an error's text that is too long loses its middle, and no half characters", () => {
  for (const filler of ["ä", "日", "😀", "x"]) {
    const text = `Cannot open ${filler.repeat(300)}: No such file`;
    const { message } = decodeResponse(encodeError(0, { error: 2, message: text }));
    assert.ok(message.isWellFormed(), message);
    assert.ok(encodeName(message).length > 240 && encodeName(message).length <= 255);
    assert.match(message, /^Cannot open .*….*: No such file$/u);
  }
  const short = "Cannot open /b\udce4d.vhd: No such file";
  assert.equal(decodeResponse(encodeError(0, { error: 2, message: short })).message, short);
});
