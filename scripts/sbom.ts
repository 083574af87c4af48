/**
 * Writes the software bill of materials, CycloneDX 1.6 in JSON: each file, and each part that others
 * made, with its version, licence and hash.
 *
 *     deno run -A scripts/sbom.ts dist/blktap OUT      of the binary
 *     deno run -A scripts/sbom.ts --tree FOLDER OUT    of a package whose files are in FOLDER
 *
 * The same parts give the same bytes: it has no time and no random number. It is written here and not
 * by a library, because it has few fields, and the libraries for it bring more packages than the
 * program has.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";

const ROOT = new URL("../", import.meta.url).pathname;
/** Where packages have the program and its libraries. */
const LIBRARIES = "usr/lib/blktap/lib/";
const PROGRAM = "usr/lib/blktap/bin/blktap";
/** Licences (SPDX) of the source packages of the libraries. */
const LICENCES: Readonly<Record<string, string>> = {
  glibc: "LGPL-2.1-or-later AND GPL-2.0-or-later WITH GCC-exception-2.0",
  openssl: "Apache-2.0",
};
const GCC_LICENCE = "GPL-3.0-or-later WITH GCC-exception-3.1";

interface Component {
  type: "application" | "platform" | "library" | "file";
  "bom-ref": string;
  name: string;
  version?: string;
  hashes?: { alg: "SHA-256" | "SHA-512"; content: string }[];
  licenses?: ({ license: { id: string } } | { expression: string })[];
  purl?: string;
  description?: string;
}

function run(command: string, ...args: string[]): string {
  const { success, stdout, stderr } = new Deno.Command(command, { args, cwd: ROOT }).outputSync();
  if (success) return new TextDecoder().decode(stdout);
  throw new Error(`Cannot run ${command} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
}

function sha256(path: string): string {
  return createHash("sha256").update(Deno.readFileSync(path)).digest("hex");
}

function readJson(path: string): Record<string, unknown> {
  return JSON.parse(Deno.readTextFileSync(path));
}

function fileComponent(name: string, path: string): Component {
  const hashes: Component["hashes"] = [{ alg: "SHA-256", content: sha256(path) }];
  return { type: "file", "bom-ref": `file:${name}`, name, hashes };
}

/** The files below a folder, sorted. Links have no content of their own. */
function filesBelow(folder: string, prefix = ""): string[] {
  return [...Deno.readDirSync(folder)].sort((a, b) => a.name < b.name ? -1 : 1).flatMap((entry) => {
    const name = prefix + entry.name;
    if (entry.isDirectory) return filesBelow(`${folder}/${entry.name}`, `${name}/`);
    return entry.isFile ? [name] : [];
  });
}

/** The runtime: what `deno compile` puts in front of the program. */
function runtime(): Component {
  const toolchain = Deno.readTextFileSync(`${ROOT}scripts/toolchain`);
  const [, hash] = /^denort_sha256=([0-9a-f]{64})$/m.exec(toolchain) ?? [];
  const [, bytes] = /^denort_bytes=(\d+)$/m.exec(toolchain) ?? [];
  const tools = readJson(`${ROOT}scripts/npm/package.json`).dependencies as Record<string, string>;
  const version = tools["@deno/linux-x64-glibc"];
  return {
    type: "platform",
    "bom-ref": "deno",
    name: "deno",
    version,
    hashes: [{ alg: "SHA-256", content: hash }],
    licenses: [{ license: { id: "MIT" } }],
    purl: `pkg:github/denoland/deno@v${version}`,
    description:
      `The hash is that of denort, the first ${bytes} bytes of the program as it is built.`,
  };
}

interface ModuleGraph {
  readonly modules: readonly { readonly npmPackage?: string }[];
  readonly npmPackages: Readonly<
    Record<string, { name: string; version: string; dependencies: readonly string[] }>
  >;
}

/** The npm packages that the program imports, directly or not. */
function importedPackages({ modules, npmPackages }: ModuleGraph): string[] {
  const found = new Set<string>();
  const add = (id: string): void => {
    if (found.has(id)) return;
    found.add(id);
    npmPackages[id].dependencies.forEach(add);
  };
  for (const { npmPackage } of modules) if (npmPackage !== undefined) add(npmPackage);
  return [...found].sort();
}

/** Where the cache has a file of a package; each registry has a folder of its own there. */
function cachedManifest(npmCache: string, file: string): string {
  for (const { name } of Deno.readDirSync(npmCache)) {
    const path = `${npmCache}/${name}/${file}`;
    if (existsSync(path)) return path;
  }
  throw new Error(`The cache of npm packages has no ${file}`);
}

/** What the program imports, and what the script of its page does. */
const ENTRIES = ["src/main.ts", "src/web/client/main.ts"];

function npmComponents(): Component[] {
  const graphs = ENTRIES.map((entry): ModuleGraph =>
    JSON.parse(run(Deno.execPath(), "info", "--json", entry))
  );
  const { npmCache } = JSON.parse(run(Deno.execPath(), "info", "--json"));
  const locked = readJson(`${ROOT}deno.lock`).npm as Record<string, { integrity: string }>;
  const packages = graphs.flatMap((graph) =>
    importedPackages(graph).map((id) => ({ id, ...graph.npmPackages[id] }))
  );
  return packages.map(({ id, name, version }) => {
    const { license } = readJson(cachedManifest(npmCache, `${name}/${version}/package.json`));
    const content = Buffer.from(locked[id].integrity.replace(/^sha512-/, ""), "base64")
      .toString("hex");
    return {
      type: "library",
      "bom-ref": `npm:${id}`,
      name,
      version,
      hashes: [{ alg: "SHA-512", content }],
      licenses: [{ license: { id: String(license) } }],
      purl: `pkg:npm/${name}@${version}`,
      description: "Compiled into the program. The hash is that of the package in the registry.",
    };
  });
}

/** The library of a package, with the Debian package that it comes from if this is Debian. */
function libraryComponent(name: string, path: string): Component {
  const component: Component = { ...fileComponent(name, path), type: "library" };
  const base = name.slice(LIBRARIES.length);
  const places = ["", "/usr"].flatMap((
    root,
  ) => [`${root}/lib/x86_64-linux-gnu/${base}`, `${root}/lib64/${base}`]);
  for (const place of places) {
    let owner: string;
    try {
      // The package of a name is the one of its content only if the file is unchanged.
      if (sha256(place) !== component.hashes?.[0].content) continue;
      owner = run("dpkg-query", "-S", place).split(": ")[0].split(",")[0];
    } catch {
      continue;
    }
    const fields = "${Package} ${Version} ${source:Package} ${source:Version}";
    const [binary, version, source] = run("dpkg-query", "-W", "-f", fields, owner).split(" ");
    const expression = LICENCES[source] ?? (source.startsWith("gcc-") ? GCC_LICENCE : undefined);
    return {
      ...component,
      version,
      ...(expression === undefined ? {} : { licenses: [{ expression }] }),
      purl: `pkg:deb/debian/${binary}@${encodeURIComponent(version)}?arch=amd64`,
    };
  }
  return component;
}

function filesOf(tree: string, except: string): Component[] {
  return filesBelow(tree).filter((name) => `${tree}/${name}` !== except).map((name) => {
    const path = `${tree}/${name}`;
    // The tarball has what is to be installed in a folder of its own.
    const installed = name.replace(/^root\//, "");
    return installed.startsWith(LIBRARIES)
      ? libraryComponent(installed, path)
      : fileComponent(installed, path);
  });
}

function billOf(files: readonly Component[], program: string): string {
  const { version } = readJson(`${ROOT}deno.json`) as { version: string };
  const ref = `blktap@${version}`;
  const parts = [runtime(), ...npmComponents()];
  const all = [...parts, ...files];
  const bill = {
    $schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: {
      component: {
        type: "application",
        "bom-ref": ref,
        name: "blktap",
        version,
        licenses: [{ license: { id: "MIT" } }],
      },
    },
    components: all,
    dependencies: [
      { ref, dependsOn: files.map((file) => file["bom-ref"]) },
      { ref: `file:${program}`, dependsOn: parts.map((part) => part["bom-ref"]) },
    ],
  };
  return `${JSON.stringify(bill, null, 2)}\n`;
}

function main([first, ...rest]: string[]): void {
  const [tree, out] = first === "--tree" ? rest : [null, rest[0]];
  if (out === undefined) throw new Error("Usage: sbom.ts PROGRAM OUT | --tree FOLDER OUT");
  const text = tree === null
    ? billOf([fileComponent("blktap", first)], "blktap")
    : billOf(filesOf(tree, out), PROGRAM);
  Deno.mkdirSync(out.slice(0, Math.max(out.lastIndexOf("/"), 1)), { recursive: true });
  // By a new name: the old file may be a hard link of a package that is complete.
  Deno.writeTextFileSync(`${out}.new`, text);
  Deno.renameSync(`${out}.new`, out);
}

main(Deno.args);
