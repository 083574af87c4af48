import type { Search } from "./search.ts";

/** The searches by name. A search is loaded only when it runs. */
export const SEARCHES: Readonly<Record<string, () => Promise<Search>>> = {
  enumerate: async () => (await import("./enumerate/search.ts")).enumeration,
  "bad-disk": async () => (await import("./bad_disk/bad_disk.ts")).badDiskSearch,
  fuzz: async () => (await import("./fuzz/fuzz.ts")).search,
  images: async () => (await import("./images/images_search.ts")).imagesSearch,
  sim: async () => (await import("./sim/sim.ts")).simulator,
};
