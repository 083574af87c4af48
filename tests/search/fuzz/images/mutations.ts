/**
 * Mutations of files. Each is a small record, so that a case can be kept in the corpus, and reduced by
 * leaving mutations out.
 *
 * @module
 */
import { Random } from "../../../../src/testing/random.ts";
import type { Storage, StorageFile } from "../../../../src/files/storage.ts";
import { type Places, placesOf, resum, type StructureName } from "./places.ts";
import { contentOf } from "./build_image.ts";
import type { World } from "./worlds.ts";

/** A change of one file of a world; `file` is its number in the world. */
export type Mutation =
  & { readonly file: number }
  & (
    /** Writes bytes, in hexadecimal, and then the right checksum of a structure. */
    | { readonly at: number; readonly bytes: string; readonly sum?: StructureName }
    /** Flips a bit of a byte. */
    | { readonly at: number; readonly flip: number; readonly sum?: StructureName }
    /** Writes bytes from a seed. */
    | { readonly at: number; readonly noise: number; readonly length: number }
    /** Copies bytes from a place of a file to another place. */
    | {
      readonly at: number;
      readonly from: number;
      readonly source: number;
      readonly length: number;
    }
    /** Sets the length. */
    | { readonly size: number }
    /** The file is the content of another one. */
    | { readonly become: number }
    | { readonly remove: true }
  );

/** The longest file that a mutation makes by writing, in bytes. */
const MOST_BYTES = 64 * 1024 ** 3;

const places = new WeakMap<Uint8Array, Places>();

/** The places in a file of a world. */
export function placesIn(bytes: Uint8Array<ArrayBuffer>): Places {
  let known = places.get(bytes);
  if (known === undefined) places.set(bytes, known = placesOf(bytes));
  return known;
}

/** Writes the files of a world, mutated, to a storage; `nameOf` may move them. */
export function putWorld(
  storage: Storage,
  world: World,
  mutations: readonly Mutation[],
  nameOf: (path: string) => string = (path) => path,
): void {
  const paths = [...world.files.keys()];
  for (const [path, bytes] of world.files) put(storage, nameOf(path), bytes);
  for (const mutation of mutations) {
    const path = nameOf(paths[mutation.file % paths.length]);
    if (!storage.exists(path)) continue;
    if ("remove" in mutation) storage.remove(path);
    else if ("become" in mutation) {
      put(storage, path, world.files.get(paths[mutation.become % paths.length]) ?? noBytes);
    } else {
      const original = world.files.get(paths[mutation.file % paths.length]) ?? noBytes;
      const file = storage.open(path, "write");
      try {
        change(file, mutation, { original, world });
      } finally {
        file.close();
      }
    }
  }
}

const noBytes = new Uint8Array(0);

function put(storage: Storage, path: string, bytes: Uint8Array<ArrayBuffer>): void {
  const file = storage.open(path, "create");
  file.writeAt(bytes, 0);
  file.close();
}

function change(
  file: StorageFile,
  mutation: Mutation,
  { original, world }: { original: Uint8Array<ArrayBuffer>; world: World },
): void {
  if ("size" in mutation) return file.truncate(mutation.size);
  if (!("at" in mutation) || mutation.at > MOST_BYTES) return;
  const { at } = mutation;
  if ("bytes" in mutation) file.writeAt(Uint8Array.fromHex(mutation.bytes), at);
  else if ("flip" in mutation) {
    const byte = new Uint8Array(1);
    if (file.readAt(byte, at) === 0) return;
    byte[0] ^= 1 << mutation.flip;
    file.writeAt(byte, at);
  } else if ("noise" in mutation) file.writeAt(contentOf(mutation.noise, mutation.length), at);
  else {
    const all = [...world.files.values()];
    const source = all[mutation.source % all.length];
    const bytes = source.slice(mutation.from, mutation.from + mutation.length);
    if (bytes.length > 0) file.writeAt(bytes, at);
  }
  if ("sum" in mutation && mutation.sum !== undefined) {
    resum(file, mutation.sum, placesIn(original));
  }
}

/** A short text of a mutation, for the trace. */
export function describeMutation(mutation: Mutation): string {
  return JSON.stringify(mutation);
}

/** Draws one of a list. */
export function pick<T>(random: Random, list: readonly T[]): T {
  return list[random.below(list.length)];
}
