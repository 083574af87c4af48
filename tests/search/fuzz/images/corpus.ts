import type { ImageCase } from "./image_case.ts";

const FOLDER = new URL("../../../data/corpus/", import.meta.url);

/** A case that is kept, and what it once found or shows. */
export interface CorpusEntry extends ImageCase {
  readonly what: string;
}

/** The cases of a file of the corpus, which has one on each line. */
export function corpusOf<Entry = CorpusEntry>(name: string): Entry[] {
  const text = Deno.readTextFileSync(new URL(`${name}.jsonl`, FOLDER));
  return text.split("\n").filter((line) => line !== "").map((line): Entry => JSON.parse(line));
}
