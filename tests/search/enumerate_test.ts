/** Every cut and every error of every operation. */
import { searched } from "../support/searched.ts";
import { OPERATIONS } from "./enumerate/search.ts";

Deno.test(`enumeration: cuts and errors at each step of ${OPERATIONS.length} operations`, () =>
  searched("enumerate", "--count", `${OPERATIONS.length}`));
