/**
 * Chains that other programs may have made, from fixed seeds, are read alike by all readers.
 *
 * @module
 */
import { checkChain } from "../search/images/images_search.ts";

Deno.test("chains of other programs hold what their maker wrote, offline and served", () => {
  for (let seed = 1; seed <= 150; seed++) {
    try {
      checkChain(seed, { trace: () => {}, count: () => {} });
    } catch (error) {
      throw new Error(`Seed ${seed} (deno task images --seed ${seed})`, { cause: error });
    }
  }
});
