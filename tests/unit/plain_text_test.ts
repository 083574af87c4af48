import assert from "node:assert/strict";
import { Logger } from "../../src/log/log.ts";
import { plainJson, plainLines, plainText } from "../../src/log/plain_text.ts";
import { jsonText } from "../../src/cli/json.ts";

/** Whether a terminal, a log or a line reader interprets a character. */
function acts(unit: number): boolean {
  return unit < 0x20 || (unit >= 0x7f && unit < 0xa0) || (unit >= 0x2028 && unit <= 0x202e) ||
    (unit >= 0x2066 && unit <= 0x2069) || [0x61c, 0x200e, 0x200f].includes(unit);
}

Deno.test("plain text: no character that acts is left, all others stay", () => {
  for (let unit = 0; unit < 0x10000; unit++) {
    const text = String.fromCharCode(unit);
    const plain = plainText(text);
    const stays = !acts(unit) && text.isWellFormed();
    assert.equal(plain === text, stays, `U+${unit.toString(16)}: ${plain}`);
    if (!stays) assert.match(plain, /^\\(n|r|t|x[0-9a-f]{2}|u[0-9a-f]{4})$/);
  }
});

Deno.test("plain text: what escapes look like", () => {
  assert.equal(plainText("a\nb\r\tc\x1b[31m\x7f"), String.raw`a\nb\r\tc\x1b[31m\x7f`);
  assert.equal(plainText("b\udce4d \u009b2J \u202egnp"), String.raw`b\xe4d \u009b2J \u202egnp`);
  assert.equal(plainText("\ud800 \udc00"), String.raw`\ud800 \udc00`);
});

Deno.test("plain text: ordinary names stay as they are", () => {
  const names = [
    "a b.vhd",
    "ü日本語.vhd",
    "😀👨‍👩‍👧",
    "C:\\x",
    "می‌خواهم",
    "'\"$`|&;<>",
    "é",
    "\ufeffx",
  ];
  for (const name of names) {
    assert.equal(plainText(name), name);
    assert.equal(plainLines(`${name}\n${name}\n`), `${name}\n${name}\n`);
  }
});

Deno.test("plain text: JSON means the same, without characters that act", () => {
  const value = { name: "a\n\x1b\u009b\u202e\u2028\udce4\x7f😀ä", more: ["\t", 1, null] };
  for (const indent of [0, 2]) {
    const text = jsonText(value, { indent });
    assert.deepEqual(JSON.parse(text), value);
    assert.ok([...text].every((c) => c === "\n" || !acts(c.charCodeAt(0))), text);
    assert.ok(text.isWellFormed() && text.includes("😀ä"));
  }
  assert.equal(plainJson('{\n\t"a": 1\r\n}'), '{\n\t"a": 1\r\n}');
});

Deno.test("plain text: an entry of the log is a plain line", () => {
  const got: string[] = [];
  const log = new Logger([{
    write: (_level, message) => got.push(message),
    reopen: () => {},
    close: () => {},
  }]);
  log.error("Cannot open /a\x1b]0;x\x07\nb\u202e\udce4.vhd");
  assert.deepEqual(got, [String.raw`Cannot open /a\x1b]0;x\x07 b\u202e\xe4.vhd`]);
});
