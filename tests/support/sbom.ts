/** Holds a CycloneDX list of parts against the files that it is about. */
import { createHash } from "node:crypto";

export interface Component {
  readonly type: string;
  readonly name: string;
  readonly version?: string;
  readonly hashes?: readonly { readonly alg: string; readonly content: string }[];
  readonly licenses?: readonly unknown[];
  readonly purl?: string;
  readonly "bom-ref": string;
}

export interface Bill {
  readonly bomFormat: string;
  readonly specVersion: string;
  readonly metadata: { readonly component: Component };
  readonly components: readonly Component[];
  readonly dependencies: readonly { readonly ref: string; readonly dependsOn: readonly string[] }[];
}

export function readBill(path: string): Bill {
  return JSON.parse(Deno.readTextFileSync(path));
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** The regular files below a folder. */
function filesBelow(folder: string, prefix = ""): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory, isFile }) =>
    isDirectory
      ? filesBelow(`${folder}/${name}`, `${prefix}${name}/`)
      : isFile
      ? [prefix + name]
      : []
  );
}

/**
 * What is wrong with a list: files that it does not have, files that are missing, and files with
 * another hash.
 */
export function faultsOf({ components }: Bill, folder: string, except: string): string[] {
  const listed = new Map(
    components.filter(({ "bom-ref": ref }) => ref.startsWith("file:"))
      .map(({ name, hashes }) => [name, hashes?.find(({ alg }) => alg === "SHA-256")?.content]),
  );
  const present = filesBelow(folder).filter((name) => name !== except);
  return [
    ...present.filter((name) => !listed.has(name)).map((name) => `${name} is not listed`),
    ...[...listed.keys()].filter((name) => !present.includes(name))
      .map((name) => `${name} is missing`),
    ...present.filter((name) => listed.has(name))
      .filter((name) => sha256(Deno.readFileSync(`${folder}/${name}`)) !== listed.get(name))
      .map((name) => `${name} differs`),
  ];
}
