/** Replays the cases that fuzzing has found or that are worth keeping; see docs/searching.md. */
import { corpusOf } from "../search/fuzz/images/corpus.ts";
import { runCase } from "../search/fuzz/images/image_case.ts";
import { Stage } from "../search/fuzz/images/stage.ts";

for (const [number, entry] of corpusOf("images").entries()) {
  Deno.test(`images ${number}: ${entry.what}`, async () => {
    const stage = new Stage();
    await runCase(stage, entry);
    stage.useNeighbour();
    stage.close();
  });
}
