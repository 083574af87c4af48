import { drawJournalCase } from "../images/journals.ts";
import type { Target } from "../target.ts";
import { ImageTarget } from "./images.ts";

/** Images whose resize was broken off, with mutated journals, which are reverted. */
export const target: Target = new ImageTarget("journals", drawJournalCase);
