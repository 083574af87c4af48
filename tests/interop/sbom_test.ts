/** The list of the parts of the binary, `dist/share/sbom.cdx.json`. package_test.ts has those of packages. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { readBill, sha256 } from "../support/sbom.ts";
import { sourceFiles } from "../support/source_files.ts";
import { binaryPath, needs, runOk, withTempDir } from "../support/tools.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const { ignore, suffix } = needs("dist/blktap", "dist/share/sbom.cdx.json");

function readText(path: string): string {
  return Deno.readTextFileSync(ROOT + path);
}

Deno.test(`sbom: it is of this binary, and names its runtime${suffix}`, { ignore }, () => {
  const { components, ...bill } = readBill(`${ROOT}dist/share/sbom.cdx.json`);
  assert.deepEqual([bill.bomFormat, bill.specVersion], ["CycloneDX", "1.6"]);
  const binary = Deno.readFileSync(binaryPath("blktap"));
  const hashOf = (ref: string): string | undefined =>
    components.find((component) => component["bom-ref"] === ref)?.hashes?.[0].content;
  assert.equal(hashOf("file:blktap"), sha256(binary));
  const runtimeBytes = Number(/^denort_bytes=(\d+)$/m.exec(readText("scripts/toolchain"))?.[1]);
  assert.ok(runtimeBytes > 0 && runtimeBytes < binary.length);
  assert.equal(hashOf("deno"), sha256(binary.subarray(0, runtimeBytes)));
});

Deno.test(`sbom: it has each npm package of the program, as locked${suffix}`, { ignore }, () => {
  const { components, dependencies } = readBill(`${ROOT}dist/share/sbom.cdx.json`);
  const listed = components.filter((component) => component["bom-ref"].startsWith("npm:"));
  const names = listed.map(({ name }) => name);
  // What the sources import by a name of deno.json.
  const known = Object.keys(JSON.parse(readText("deno.json")).imports);
  const text = sourceFiles("ffi", "src").map((file) => file.text).join("\n");
  const imported = known.filter((name) => new RegExp(`(from |import\\()"${name}"`).test(text));
  assert.ok(imported.includes("commander") && imported.includes("uplot"));
  for (const name of imported) assert.ok(names.includes(name), `${name} is not listed`);
  assert.ok(!names.includes("fast-check"), "a library of the tests is listed");

  const locked: Record<string, { integrity: string; dependencies?: string[] }> =
    JSON.parse(readText("deno.lock")).npm;
  for (const { name, version, hashes, licenses, purl } of listed) {
    const { integrity, dependencies = [] } = locked[`${name}@${version}`];
    const hash = Buffer.from(integrity.slice("sha512-".length), "base64").toString("hex");
    assert.deepEqual(hashes, [{ alg: "SHA-512", content: hash }]);
    assert.deepEqual(licenses, [{ license: { id: "MIT" } }]);
    assert.equal(purl, `pkg:npm/${name}@${version}`);
    // Where there are several versions of a package, the lock says which.
    const needs = dependencies.map((needed) => needed.replace(/(.)@.*$/, "$1"));
    for (const needed of needs) assert.ok(names.includes(needed), `${name} needs ${needed}`);
  }
  const refs = components.map((component) => component["bom-ref"]);
  assert.equal(new Set(refs).size, refs.length);
  for (const { dependsOn } of dependencies) {
    for (const ref of dependsOn) assert.ok(refs.includes(ref), ref);
  }
});

Deno.test(
  `sbom: the same parts give the same bytes${suffix}`,
  { ignore },
  () =>
    withTempDir(async (folder) => {
      const script = ["run", "--quiet", "-A", `${ROOT}scripts/sbom.ts`];
      await runOk(Deno.execPath(), [...script, binaryPath("blktap"), `${folder}/again.json`]);
      assert.equal(
        Deno.readTextFileSync(`${folder}/again.json`),
        readText("dist/share/sbom.cdx.json"),
      );
    }),
);
